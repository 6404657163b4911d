"""Take a gRPC call to the method of a service and back: decoding, limits, errors. All RPCs pass through here.

A service is a class with one coroutine method for each RPC of its descriptor, in snake_case:

    unary call            async def method(self, request, caller) -> response
    client stream         async def method(self, requests, caller) -> response
    server stream         async def method(self, request, caller) -> async iterator of responses
    both                  async def method(self, requests, caller) -> async iterator of responses

A request is a message, or `(message, frames)` if the message carries frames. A response is a message or the bytes of
one. `caller` says who is calling. A method reports an error by raising an `OptdError`.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import symbol_database
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from optd_server.engine.byte_budget import ByteBudget
from optd_server.rpc.callers import Caller, Callers
from optd_server.rpc.held_bytes import SMALL_BYTES, HeldBytes
from optd_wire import frames as wire
from optd_wire.error_status import to_status
from optd_wire.errors import (
    InternalError,
    InvalidRequest,
    JobExists,
    MalformedMessage,
    OptdError,
    ShuttingDown,
    Stalled,
    TooManyRequests,
    UnknownJob,
)

log = structlog.get_logger("optd.rpc")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
ANSWER_SECONDS = 1.0
"""How long before the deadline of a call its wait for room ends at the latest, so that the refusal still arrives."""
ROUTINE = UnknownJob, JobExists
"""Refusals that tell the first workers of a job that they are the first, or that another one was first."""
_SNAKE = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass
class Calls:
    """What all calls share: limits, who may call, and the number of running calls."""

    max_requests: int
    idle_seconds: float
    """How long a call waits for the next message of an upload, or for its reader to accept one."""
    budget: ByteBudget
    """That of the server."""
    budget_of: Callable[[str], ByteBudget | None]
    """That of a job; None if there is no job of that name."""
    callers: Callers
    running: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when all jobs are there. Until then calls wait, except those of services that are `always_ready`."""
    always_ready: frozenset[str] = frozenset()
    """The full names of services."""
    always_admitted: frozenset[str] = frozenset()
    """The full names of RPCs that are served beyond `max_requests`: those that keep a lease, which are short."""
    patient: set[asyncio.Task[Any]] = field(default_factory=set)
    """Tasks of calls that wait for their sender without a limit."""

    def stop(self) -> None:
        """Refuse new calls and end calls that only wait for their sender; let all other calls finish."""
        self.stopping.set()
        self.ready.set()  # calls that wait for it are refused
        for task in tuple(self.patient):
            task.cancel()

    def handlers(self, descriptor: ServiceDescriptor, service: object) -> grpc.GenericRpcHandler:
        """Return the handlers of all RPCs of a service; raise `AttributeError` if the service lacks a method."""
        methods = {
            method.name: self._handler(method, getattr(service, snake_case(method.name)))
            for method in descriptor.methods
        }
        return grpc.method_handlers_generic_handler(descriptor.full_name, methods)

    def _handler(self, method: MethodDescriptor, implementation: Callable[..., Any]) -> Handler:
        decode = _decoder(method)
        many_in, many_out = method.client_streaming, method.server_streaming

        @asynccontextmanager
        async def taken(request: Any, context: Context) -> AsyncIterator[Any]:
            if many_in:
                requests = RequestStream(context, decode, self)
                try:
                    yield requests
                finally:
                    requests.give_back()
                return
            held = HeldBytes(self.budget)
            await held.take(len(request), self.patience(context))
            try:
                what = decode(request)
                job = self.budget_of(getattr(what, "job", ""))
                if job is not None:
                    await held.charge(job)
                if many_out and len(request) <= SMALL_BYTES:
                    held.give_back()  # a stream of answers may last for ever, and keeps nothing large
                yield what
            finally:
                held.give_back()

        async def answer_one(request: Any, context: Context) -> bytes:
            async with _Guarded(self, method, context), taken(request, context) as what:
                return _encode(await implementation(what, self._caller(context)))
            raise AssertionError("a guarded call ends in its answer or in an abort")

        async def answer_many(request: Any, context: Context) -> None:
            async with (
                _Guarded(self, method, context),
                taken(request, context) as what,
                aclosing(implementation(what, self._caller(context))) as responses,
            ):
                async for response in responses:
                    await self._write(context, _encode(response))

        # Messages pass through gRPC as bytes, so that a malformed one gets our error and our reason.
        kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
        make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(answer_many if many_out else answer_one)

    def patience(self, context: Context) -> float:
        """Return how many seconds a message of a call may wait for room: until shortly before the call's deadline."""
        left = context.time_remaining()
        if left is None:
            return self.idle_seconds
        return max(left - min(ANSWER_SECONDS, left / 10), 0.0)

    def _caller(self, context: Context) -> Caller:
        caller = self.callers.identify(context.invocation_metadata() or ())
        if not isinstance(caller, Caller):
            raise caller  # unreachable: the interceptor has refused such calls
        return caller

    async def _write(self, context: Context, data: bytes) -> None:
        """Send a message; raise `Stalled`, which ends the call, if the reader does not accept it in time."""
        try:
            async with asyncio.timeout(self.idle_seconds):
                await context.write(data)
        except TimeoutError:
            raise Stalled(what="the reader of this stream", seconds=f"{self.idle_seconds:g}") from None


class _Guarded:
    """Counts a call while it runs, and turns an error into the status of the call."""

    def __init__(self, calls: Calls, method: MethodDescriptor, context: Context) -> None:
        self._calls = calls
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        if self._calls.stopping.is_set():
            await abort(self._context, ShuttingDown())
        is_full = self._calls.running >= self._calls.max_requests
        if is_full and self._method.full_name not in self._calls.always_admitted:
            await abort(self._context, TooManyRequests(limit=self._calls.max_requests))
        self._calls.running += 1
        self._began = time.perf_counter()
        if not self._calls.ready.is_set() and self._method.containing_service.full_name not in self._calls.always_ready:
            try:
                await self._calls.ready.wait()
            except BaseException:
                self._calls.running -= 1
                raise
            if self._calls.stopping.is_set():
                self._calls.running -= 1
                await abort(self._context, ShuttingDown())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._calls.running -= 1
        milliseconds = round((time.perf_counter() - self._began) * 1000, 3)
        if error is None:
            log.debug("call", rpc=self._method.full_name, ms=milliseconds)
        elif isinstance(error, OptdError):
            tell = log.debug if isinstance(error, ROUTINE) else log.info
            tell(
                "refused",
                rpc=self._method.full_name,
                reason=error.reason,
                message=str(error),
                ms=milliseconds,
            )
            await abort(self._context, error)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            incident = uuid.uuid4().hex[:12]
            log.error("failed", rpc=self._method.full_name, incident=incident, exc_info=error)
            await abort(self._context, InternalError(incident=incident))


class RequestStream:
    """The messages of a client stream, read and decoded one at a time; later messages stay with the sender."""

    def __init__(self, context: Context, decode: Callable[[bytes], Any], calls: Calls) -> None:
        self._context = context
        self._decode = decode
        self._calls = calls
        self.heard: Callable[[], None] = _nothing
        """Called with each message that arrives."""
        self._held = HeldBytes(calls.budget)
        self._job: ByteBudget | None = None
        """The budget of the job that the messages are for, once it is known."""

    def give_back(self) -> None:
        """Release the bytes of the last message, which has been processed."""
        self._held.give_back()

    def park(self) -> None:
        """Let the last message wait outside the budgets until `unpark`; raise `TooManyBytes` if too many do so."""
        self._held.park()

    def unpark(self) -> None:
        """Count the last message in the budgets again if it is parked."""
        self._held.unpark()

    async def charge(self, job: ByteBudget) -> None:
        """Count the last message and those that follow for a job too; raise `TooManyBytes` if there is no room."""
        if self._job is not job:
            self._job = job
            await self._held.charge(job)

    async def next(self, *, patient: bool = False) -> Any | None:
        """Return the next message, or None at the end of the stream.

        Raises `Stalled` if the message does not come in time. If `patient`, waits without a limit, and raises
        `ShuttingDown` when the server stops. Raises `TooManyBytes` if there is no room for the message in time, and
        `MalformedMessage` if it cannot be decoded.
        """
        if patient:
            self._job = None  # another upload begins, perhaps for another job
            return await self._taken(await self._read_patiently())
        try:
            async with asyncio.timeout(self._calls.idle_seconds):
                data = await self._read()
        except TimeoutError:
            raise Stalled(what="the sender of this stream", seconds=f"{self._calls.idle_seconds:g}") from None
        return await self._taken(data)

    async def first(self) -> Any:
        """Return the first message; raise `InvalidRequest` if there is none, and what `next` raises."""
        request = await self.next()
        if request is None:
            raise InvalidRequest(problem="the stream ended before its first message")
        return request

    async def _read(self) -> bytes | None:
        # Whoever asks for the next message has processed the last one.
        self.give_back()
        data = await self._context.read()
        self.heard()
        return data if isinstance(data, bytes) else None

    async def _taken(self, data: bytes | None) -> Any | None:
        if data is None:
            return None
        await self._held.take(len(data), self._calls.patience(self._context))
        decoded = self._decode(data)
        if self._job is not None:
            await self._held.charge(self._job)
        return decoded

    async def _read_patiently(self) -> bytes | None:
        if self._calls.stopping.is_set():
            raise ShuttingDown
        task = asyncio.current_task()
        assert task is not None
        self._calls.patient.add(task)
        try:
            return await self._read()
        except asyncio.CancelledError:
            if self._calls.stopping.is_set() and task.cancelling() == 1:
                task.uncancel()
                raise ShuttingDown from None
            raise
        finally:
            self._calls.patient.discard(task)


async def abort(context: Context, error: OptdError) -> None:
    """End a call with the status of an error."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def snake_case(name: str) -> str:
    """`CreateJob` to `create_job`."""
    return _SNAKE.sub("_", name).lower()


def _decoder(method: MethodDescriptor) -> Callable[[bytes], Any]:
    message_class: type[Message] = symbol_database.Default().GetSymbol(method.input_type.full_name)
    if "rows" in method.input_type.fields_by_name:
        return lambda data: wire.decode_received(message_class, data)
    if "frames" in method.input_type.fields_by_name:
        return lambda data: wire.decode(message_class, data)

    def decode(data: bytes) -> Message:
        try:
            return message_class.FromString(data)
        except DecodeError as problem:
            raise MalformedMessage(message=method.input_type.name, problem=problem) from problem

    return decode


def _encode(response: Any) -> bytes:
    if isinstance(response, bytes):
        return response
    encoded: bytes = response.SerializeToString()
    return encoded


def _nothing() -> None:
    """Do nothing."""
