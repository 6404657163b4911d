"""The seam of the client: what a connection to a server does, and nothing of what is said over it.

Behind it are gRPC (`channel`) and a server in memory for tests (`fake`); `calls` has the RPCs on top of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from optd.transport.rpcs import Rpc
from optd_wire.frames import Outgoing

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

Batches = Iterable[Sequence[Outgoing]]
"""Frames to send, in lists that suit one message each. They are encoded when the connection takes them."""


class Connection(ABC):
    """One connection to one server. Safe to use from several threads.

    Blocking: a method blocks until its answer is there, and raises `DeadlineExceeded` after `timeout` seconds (None:
    never). No method retries. An interrupt leaves the connection usable.

    Ownership: frames that are sent refer to the caller's arrays. These must stay as they are until the method has
    returned or raised; from then on the connection does not read them. Payloads of received frames are views of the
    message that brought them. Whoever has made a connection closes it.

    Errors: every method raises an `OptdError`: the one that the server raised, or `ConnectionLost`,
    `DeadlineExceeded`, `MessageTooLarge`, `TooManyRequests` or `UnexpectedStatus`. What the iteration of `Batches`
    raises, such as `EncodingOverflow`, ends the call and is raised unchanged.
    """

    address: str
    """HOST:PORT of the server, for messages."""

    @abstractmethod
    def call(self, rpc: Rpc[Q, A], request: Q, timeout: float) -> A:
        """Sends one message and returns the answer."""

    @abstractmethod
    def upload(self, rpc: Rpc[Q, A], first: Q, batches: Batches, timeout: float) -> A:
        """Sends `first` and all frames, and returns the one answer."""

    @abstractmethod
    def send(self, rpc: Rpc[Q, A], messages: Iterable[Q], timeout: float) -> A:
        """Sends messages that have no frames, as `messages` gives them, and returns the one answer."""

    @abstractmethod
    def download(self, rpc: Rpc[Q, A], request: Q, timeout: float | None) -> Iterator[tuple[A, list[Any]]]:
        """Sends one message; yields the messages of the answer, each with its frames.

        Closing the iterator ends the call.
        """

    @abstractmethod
    def watch(self, rpc: Rpc[Q, A], request: Q) -> "Watch[A]":
        """Sends one message, whose answers come without end. Returns at once: errors come with the first answer."""

    @abstractmethod
    def steps(self, rpc: Rpc[Q, A]) -> "Steps[Q, A]":
        """Opens a stream of steps. Returns at once: errors of the connection come with the first answer."""

    @abstractmethod
    def beside(self) -> "Connection":
        """Another connection to the same server, for calls that must not wait behind the numbers on this one."""

    @abstractmethod
    def close(self) -> None:
        """Ends the connection; calls under way raise `ConnectionLost`. Streams must be closed before."""


class Watch(ABC, Generic[A]):
    """An open call whose answers come without end. One thread receives, any thread may cancel.

    Errors are those of `Connection`, and `ConnectionLost` after `cancel`. After an error it is of no more use.
    """

    @abstractmethod
    def receive(self) -> A:
        """The next answer; blocks until it is there."""

    @abstractmethod
    def cancel(self) -> None:
        """Ends the call; does not block."""


class Steps(ABC, Generic[Q, A]):
    """An open stream that carries one step after another, without the cost of a call for each.

    One step at a time: the caller sends it and receives its whole answer before the next. Ownership and errors are
    those of `Connection`. After an error, or when `is_open` is False, the stream is of no more use.
    """

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the stream goes on, as far as is known here."""

    @abstractmethod
    def send(self, first: Q, batches: Batches = ()) -> None:
        """Sends the messages of one step. Does not block: frames are encoded as the connection takes them."""

    @abstractmethod
    def tell(self, message: Q) -> None:
        """Sends one message that has no answer. Does not block."""

    @abstractmethod
    def receive(self, deadline: float, timeout: float) -> tuple[A, list[Any]]:
        """The next message of the answer with its frames; blocks until `deadline`, in `time.monotonic()`.

        `timeout` is what the step had in all, for the message of `DeadlineExceeded`, which ends the stream.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Ends the stream at once; does not block."""

    @abstractmethod
    def close(self) -> None:
        """Ends the stream and waits until its threads have ended, for at most 2 s."""
