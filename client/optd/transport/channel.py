"""A connection to a server: the kinds of call, who calls, and what it means where one fails.

Messages pass gRPC as bytes: frames have an encoding of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

# gRPC's own lines on stderr repeat what is raised here, and it reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from optd.transport import call_threads
from optd.transport.step_stream import StepStream
from optd.transport.tls import TLS
from optd.transport.transport import HEADER_BYTES
from optd_wire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    MessageTooLarge,
    OptdError,
    TooManyRequests,
    UnexpectedStatus,
)
from optd_wire.frames import Outgoing, decode, encode
from optd_wire.status import from_status

M = TypeVar("M", bound=Message)

# Slower than the server's own bound on pings, so that it never takes us for a flood.
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The session retries, because only it knows what is safe to send twice.
    ("grpc.enable_retries", 0),
    # A server that comes back is found within seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Channel:
    """An HTTP/2 connection; `rpc` is "Service/Method" of optd.v1, or a path from the root.

    Every method raises the server's own error where a call fails, or one of the connection.
    """

    def __init__(self, address: str, *, token: str | None = None, tls: TLS | None = None) -> None:
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        if tls is None:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        else:
            authority, certificate, key = tls.read()
            credentials = grpc.ssl_channel_credentials(authority, key, certificate)
            self._channel = grpc.secure_channel(address, credentials, _OPTIONS)

    def close(self) -> None:
        """Ends the connection; calls under way fail."""
        self._channel.close()

    def ask(self, rpc: str, request: Message, answer: type[M], timeout: float) -> M:
        """One message, and the answer to it."""

        def call() -> bytes:
            made: Any = self._channel.unary_unary(_path(rpc))
            data: bytes = made(request.SerializeToString(), timeout=timeout, metadata=self._metadata)
            return data

        with self.errors(rpc, timeout):
            return answer.FromString(call_threads.run(call))

    def upload(
        self, rpc: str, first: Message, batches: Iterable[Sequence[Outgoing]], answer: type[M], timeout: float
    ) -> M:
        """The message `first` and batches of frames, and the answer to all of them."""
        is_given_up = False

        def messages() -> Iterator[bytes]:
            for message in messages_of(first, batches):
                if is_given_up:  # what is left belongs to the caller again
                    raise InterruptedError
                yield message

        def call() -> bytes:
            made: Any = self._channel.stream_unary(_path(rpc))
            data: bytes = made(messages(), timeout=timeout, metadata=self._metadata)
            return data

        try:
            with self.errors(rpc, timeout):
                return answer.FromString(call_threads.run(call))
        finally:
            is_given_up = True

    def receive(
        self,
        rpc: str,
        request: Message,
        answer: type[M],
        timeout: float | None,
        read: Callable[[type[M], bytes], tuple[M, list[Any]]] = decode,
    ) -> Iterator[tuple[M, list[Any]]]:
        """One message, and a stream of answers with their frames, as `read` finds them; ends with the iterator."""
        calls: list[Any] = []
        is_over = False

        def begin() -> None:
            made: Any = self._channel.unary_stream(_path(rpc))
            calls.append(made(request.SerializeToString(), timeout=timeout, metadata=self._metadata))

        try:
            with self.errors(rpc, timeout):
                call_threads.run(begin)
                while (data := call_threads.run(lambda: next(calls[0], None))) is not None:
                    yield read(answer, data)
                is_over = True
        finally:
            if not is_over:
                call_threads.begin(lambda: [call.cancel() for call in calls])

    def open_steps(self, rpc: str) -> StepStream:
        """Begins a stream that one step after another is sent on."""
        call: Any = self._channel.stream_stream(_path(rpc))
        return StepStream(lambda requests: call(requests, metadata=self._metadata))

    @contextmanager
    def errors(self, rpc: str, timeout: float | None) -> Iterator[None]:
        """Turns what gRPC raises in the block into an error of optd."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._translate(rpc, error, timeout) from None

    def _translate(self, rpc: str, error: Any, timeout: float | None) -> OptdError:
        """What a failed call means: the server's own error, or one of the connection."""
        known = _own_error(error)
        if known is not None:
            return known
        name, problem = rpc.rpartition("/")[2], error.details() or "no details"
        match error.code():
            # A server that goes down cancels what it has not finished.
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return ConnectionLost(address=self.address, rpc=name, problem=problem)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded(rpc=name, address=self.address, seconds=f"{timeout or 0:g}", hint="")
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in problem:
                return MessageTooLarge(problem=problem)
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "oncurrent RPC" in problem:
                return TooManyRequests(limit="as many as it may")
            case code:
                return UnexpectedStatus(rpc=name, address=self.address, status=code.name, problem=problem)


def _own_error(error: Any) -> OptdError | None:
    """The error of optd that a failed call carries, if it carries one."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # what is in the trailers contradicts the call's own status, as a cut-off reply does
        return None
    return None if status is None else from_status(status)


def _path(rpc: str) -> str:
    return rpc if rpc.startswith("/") else f"/optd.v1.{rpc}"


def messages_of(first: Message, batches: Iterable[Sequence[Outgoing]]) -> Iterator[bytes]:
    """The messages of an upload: `first` with the first frames, then messages of frames alone; the last one says so."""
    message: Any = first
    # A large header (the spec of many parameters) goes alone: with frames it might be more than one message may be.
    waiting: Sequence[Outgoing] | None = [] if first.ByteSize() > HEADER_BYTES // 2 else None
    for batch in batches:
        if waiting is not None:
            yield encode(message, waiting)
            message = type(first)()
        waiting = batch
    message.last = True
    yield encode(message, waiting or [])
