"""The connection to a fake server: the seam, implemented by plain function calls."""

import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

from google.protobuf.message import Message

from optd.transport.connection import Batches, Connection, Steps, Watch
from optd.transport.fake.server import FakeServer
from optd.transport.rpcs import Rpc
from optd_wire.errors import ConnectionLost, DeadlineExceeded

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class FakeConnection(Connection):
    """See `Connection`. Blocks only for other calls of the same server, and for the versions of its jobs."""

    def __init__(self, server: FakeServer) -> None:
        self.address = server.address
        self.is_closed = False
        self._server = server

    def call(self, rpc: Rpc[Q, A], request: Q, timeout: float) -> A:
        """Sends one message and returns the answer."""
        return self.answer(rpc, request, ())[0]

    def upload(self, rpc: Rpc[Q, A], first: Q, batches: Batches, timeout: float) -> A:
        """Sends `first` and all frames, and returns the one answer."""
        return self.answer(rpc, first, batches)[0]

    def send(self, rpc: Rpc[Q, A], messages: Iterable[Q], timeout: float) -> A:
        """Sends messages; the server answers each of them, and the last answer counts."""
        *_, answer = (self.answer(rpc, message, ())[0] for message in messages)
        return answer

    def download(self, rpc: Rpc[Q, A], request: Q, timeout: float | None) -> Iterator[tuple[A, list[Any]]]:
        """Sends one message; yields the answer, which is one message, with its frames."""
        yield self.answer(rpc, request, ())

    def watch(self, rpc: Rpc[Q, A], request: Q) -> "FakeWatch[A]":
        """Sends one message, whose answers come without end."""
        return FakeWatch(self, self._server, rpc, request)

    def steps(self, rpc: Rpc[Q, A]) -> "FakeSteps[Q, A]":
        """Opens a stream of steps."""
        return FakeSteps(self, rpc)

    def beside(self) -> "FakeConnection":
        """Another connection to the same server."""
        return FakeConnection(self._server)

    def close(self) -> None:
        """Ends the connection."""
        self.is_closed = True
        self._server.wake()

    def answer(self, rpc: Rpc[Q, A], request: Q, batches: Batches) -> tuple[A, list[Any]]:
        """Asks the server; returns the message and the frames of its answer."""
        if self.is_closed:
            raise ConnectionLost(address=self.address, rpc=rpc.name, problem="the connection is closed")
        message, frames = self._server.handle(rpc, request, chain.from_iterable(batches))
        assert isinstance(message, rpc.answer), "a handler answers with its RPC's message"
        return message, list(frames)


class FakeWatch(Watch[A]):
    """See `Watch`: versions of a job. The fake server has no other answers without end."""

    def __init__(self, connection: FakeConnection, server: FakeServer, rpc: Rpc[Any, A], request: Any) -> None:
        self._connection = connection
        self._server = server
        self._rpc = rpc
        self._request = request
        self._is_cancelled = False

    def receive(self) -> A:
        """The next version; blocks until there is another one than the last."""
        message = self._server.next_version(
            self._rpc, self._request, lambda: self._is_cancelled or self._connection.is_closed
        )
        if message is None:
            problem = "the call was cancelled"
            raise ConnectionLost(address=self._connection.address, rpc=self._rpc.name, problem=problem)
        assert isinstance(message, self._rpc.answer), "it answers with its RPC's message"
        self._request.known_version = message.version.version
        return message

    def cancel(self) -> None:
        """Ends the call."""
        self._is_cancelled = True
        self._server.wake()


class FakeSteps(Steps[Q, A]):
    """See `Steps`. A step reaches the server when its answer is received."""

    def __init__(self, connection: FakeConnection, rpc: Rpc[Q, A]) -> None:
        self._connection = connection
        self._rpc = rpc
        self._sent: tuple[Q, Batches] | None = None
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether the stream goes on."""
        return self._is_open

    def send(self, first: Q, batches: Batches = ()) -> None:
        """Holds one step until its answer is received."""
        self._sent = first, batches

    def tell(self, message: Q) -> None:
        """Drops the message: it would end a hold on shared memory, and there is none."""

    def receive(self, deadline: float, timeout: float) -> tuple[A, list[Any]]:
        """The answer of the step that was sent, with its frames."""
        if self._sent is None:
            raise ConnectionLost(address=self._connection.address, rpc=self._rpc.name, problem="nothing was sent")
        (first, batches), self._sent = self._sent, None
        try:
            if deadline <= time.monotonic():
                address, seconds = self._connection.address, f"{timeout:g}"
                raise DeadlineExceeded(rpc=self._rpc.name, address=address, seconds=seconds, hint="")
            return self._connection.answer(self._rpc, first, batches)
        except BaseException:
            self._is_open = False
            raise

    def cancel(self) -> None:
        """Ends the stream."""
        self._is_open = False

    def close(self) -> None:
        """Ends the stream."""
        self._is_open = False
