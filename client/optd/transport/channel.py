"""The connection over gRPC: one HTTP/2 channel, the token of each call, and what its failures mean.

Messages pass gRPC as bytes, because frames have an encoder of their own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

# gRPC's lines on stderr repeat the errors that are raised here. It reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from optd.transport import call_threads
from optd.transport.connection import Batches, Connection, Steps, Watch
from optd.transport.numbers import HEADER_BYTES
from optd.transport.rpcs import Rpc
from optd.transport.step_stream import StepStream
from optd.transport.tls import TLS
from optd_wire.error_status import from_status
from optd_wire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    MessageTooLarge,
    OptdError,
    TooManyRequests,
    UnexpectedStatus,
)
from optd_wire.frames import Outgoing, encode

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

# Less often than the server's bound on pings, so that it never takes them for a flood.
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
# Channels of the same options share one connection otherwise.
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


class Channel(Connection):
    """See `Connection`. The connection is made with the first call."""

    def __init__(self, address: str, *, token: str | None = None, tls: TLS | None = None) -> None:
        self.address = address
        self._token, self._tls = token, tls
        self._starting = threading.Lock()  # the main thread hands calls over, so no interrupt leaves it locked
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options = [*_OPTIONS, _OWN_CONNECTION]
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            authority, certificate, key = tls.read()
            credentials = grpc.ssl_channel_credentials(authority, key, certificate)
            self._channel = grpc.secure_channel(address, credentials, options)

    def beside(self) -> Channel:
        """Another channel to the same server, over a connection of its own, which is made with its first call."""
        return Channel(self.address, token=self._token, tls=self._tls)

    def close(self) -> None:
        """Ends the connection; calls under way raise `ConnectionLost`."""
        self._channel.close()

    def call(self, rpc: Rpc[Q, A], request: Q, timeout: float) -> A:
        """Sends one message and returns the answer."""
        is_given_up = False

        def call() -> bytes:
            made: Any = self._channel.unary_unary(rpc.path)
            data = request.SerializeToString()
            # A call that an interrupt gave up must not overtake a later one: a late Join would fence a newer epoch.
            with self._starting:
                if is_given_up:
                    raise InterruptedError
                begun = made.future(data, timeout=timeout, metadata=self._metadata)
            answer: bytes = begun.result()
            return answer

        try:
            with self.errors(rpc.name, timeout):
                return rpc.answer.FromString(call_threads.run(call))
        finally:
            is_given_up = True

    def upload(self, rpc: Rpc[Q, A], first: Q, batches: Batches, timeout: float) -> A:
        """Sends `first` and all frames, and returns the one answer."""
        return self._upload(rpc, messages_of(first, batches), timeout)

    def send(self, rpc: Rpc[Q, A], messages: Iterable[Q], timeout: float) -> A:
        """Sends messages that have no frames, and returns the one answer."""
        return self._upload(rpc, (message.SerializeToString() for message in messages), timeout)

    def _upload(self, rpc: Rpc[Q, A], encoded: Iterator[bytes], timeout: float) -> A:
        is_given_up = False
        problems: list[OptdError] = []

        def messages() -> Iterator[bytes]:
            try:
                for message in encoded:
                    if is_given_up:  # the arrays belong to the caller again
                        raise InterruptedError
                    yield message
            except OptdError as problem:
                problems.append(problem)  # gRPC would only say that something was raised
                raise

        def call() -> bytes:
            made: Any = self._channel.stream_unary(rpc.path)
            data: bytes = made(messages(), timeout=timeout, metadata=self._metadata)
            return data

        try:
            with self.errors(rpc.name, timeout):
                return rpc.answer.FromString(call_threads.run(call))
        except OptdError:
            if problems:
                raise problems[0] from None
            raise
        finally:
            is_given_up = True

    def download(self, rpc: Rpc[Q, A], request: Q, timeout: float | None) -> Iterator[tuple[A, list[Any]]]:
        """Sends one message; yields the messages of the answer, each with its frames."""
        calls: list[Any] = []
        is_over = False

        def begin() -> None:
            made: Any = self._channel.unary_stream(rpc.path)
            calls.append(made(request.SerializeToString(), timeout=timeout, metadata=self._metadata))

        try:
            with self.errors(rpc.name, timeout):
                call_threads.run(begin)
                while (data := call_threads.run(lambda: next(calls[0], None))) is not None:
                    yield rpc.read(rpc.answer, data)
                is_over = True
        finally:
            if not is_over:
                call_threads.begin(lambda: [call.cancel() for call in calls])

    def watch(self, rpc: Rpc[Q, A], request: Q) -> ChannelWatch[A]:
        """Sends one message, whose answers come without end."""
        made: Any = self._channel.unary_stream(rpc.path)
        data = request.SerializeToString()
        try:
            return ChannelWatch(self, rpc, call_threads.run(lambda: made(data, metadata=self._metadata)))
        except ValueError as problem:  # the connection is closed
            raise ConnectionLost(address=self.address, rpc=rpc.name, problem=str(problem)) from None

    def steps(self, rpc: Rpc[Q, A]) -> ChannelSteps[Q, A]:
        """Opens a stream of steps."""
        return ChannelSteps(self, rpc, self._open_stream(rpc.path))

    def _open_stream(self, path: str) -> StepStream:
        call: Any = self._channel.stream_stream(path)
        return StepStream(lambda requests: call(requests, metadata=self._metadata))

    @contextmanager
    def errors(self, name: str, timeout: float | None) -> Iterator[None]:
        """Turns what gRPC raises in the block, in a call of this name, into an error of optd."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._translate(name, error, timeout) from None

    def _translate(self, name: str, error: Any, timeout: float | None) -> OptdError:
        """The server's own error, if the failed call carries one, else an error of the connection."""
        known = _own_error(error)
        if known is not None:
            return known
        problem = error.details() or "no details"
        match error.code():
            # A server that shuts down cancels the calls that it has not finished.
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


class ChannelWatch(Watch[A]):
    """See `Watch`: a stream of bytes from the server."""

    def __init__(self, channel: Channel, rpc: Rpc[Any, A], call: Any) -> None:
        self._channel = channel
        self._rpc = rpc
        self._call = call

    def receive(self) -> A:
        """The next answer; blocks until it is there."""
        with self._channel.errors(self._rpc.name, None):
            data = call_threads.run(lambda: next(self._call, None))
        if data is None:
            problem = "the server has ended the stream"
            raise ConnectionLost(address=self._channel.address, rpc=self._rpc.name, problem=problem)
        return self._rpc.answer.FromString(data)

    def cancel(self) -> None:
        """Ends the call."""
        call_threads.begin(self._call.cancel)


class ChannelSteps(Steps[Q, A]):
    """See `Steps`: messages and frames over a `StepStream`, which carries bytes."""

    def __init__(self, channel: Channel, rpc: Rpc[Q, A], stream: StepStream) -> None:
        self._channel = channel
        self._rpc = rpc
        self._stream = stream

    @property
    def is_open(self) -> bool:
        """Whether the stream goes on, as far as is known here."""
        return self._stream.open

    def send(self, first: Q, batches: Batches = ()) -> None:
        """Sends the messages of one step, which are encoded one by one as gRPC takes them."""
        self._stream.send(messages_of(first, batches))

    def tell(self, message: Q) -> None:
        """Sends one message that has no answer."""
        self._stream.send(iter([message.SerializeToString()]))

    def receive(self, deadline: float, timeout: float) -> tuple[A, list[Any]]:
        """The next message of the answer with its frames."""
        address, name = self._channel.address, self._rpc.name
        with self._channel.errors(name, timeout):
            data = self._stream.receive(deadline - time.monotonic())
        if self._stream.late:
            raise DeadlineExceeded(rpc=name, address=address, seconds=f"{timeout:g}", hint="")
        if data is None:
            raise ConnectionLost(address=address, rpc=name, problem="the server has ended the stream")
        return self._rpc.read(self._rpc.answer, data)

    def cancel(self) -> None:
        """Ends the stream at once."""
        self._stream.cancel()

    def close(self) -> None:
        """Ends the stream and waits for its threads."""
        self._stream.close()


def _own_error(error: Any) -> OptdError | None:
    """The error of optd that a failed call carries, if it carries one."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the trailers contradict the call's status, as in a reply that was cut off
        return None
    return None if status is None else from_status(status)


def messages_of(first: Message, batches: Batches) -> Iterator[bytes]:
    """The messages of an upload: `first` with the first frames, then frames alone; the last message has `last` set."""
    message: Any = first
    # A large header (the spec of many parameters) travels alone: with frames the message might be too large.
    waiting: Sequence[Outgoing] | None = [] if first.ByteSize() > HEADER_BYTES // 2 else None
    for batch in batches:
        if waiting is not None:
            yield encode(message, waiting)
            message = type(first)()
        waiting = batch
    message.last = True
    yield encode(message, waiting or [])
