"""A push in flight: its identity, the source of its gradient, and the results that its callers wait for."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from optd_server.engine.rounds.digest import Digest
from optd_server.engine.rounds.policies.base import PushId
from optd_server.store.flat import Placed
from optd_server.store.gradients import Gradient
from optd_server.store.ledger import Presence
from optd_server.store.rows import RowPlace
from optd_wire.errors import OptdError
from optd_wire.frames import Received
from optd_wire.row_frames import RowFrame
from optd_wire.values import PushHeader, PushResult

T = TypeVar("T")


class GradientSource(Protocol):
    """The source of a push's gradient. Its sender keeps the gradient until it is received."""

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        """Pass the gradient to `write`, some frames at a time; raise what `write` raises, or a broken connection."""

    def park(self) -> None:
        """Let the message that has arrived wait until `receive`, perhaps long, without delaying the pushes before it.

        Raise `TooManyBytes` if too many bytes wait so.
        """


class Receiver(Protocol):
    """Receives the gradient of one push."""

    async def write(self, frames: Sequence[Received]) -> None:
        """Take received frames; raise the problem of a frame, or why the push has ended."""

    def seal(self) -> None:
        """Mark the gradient as complete; raise `IncompleteParameter` or `InvalidRequest`."""


class Spool(Receiver, Protocol):
    """A received gradient that waits for its round; see `rounds/spool.py`."""

    placed: list[Placed]
    """The frames of whole parameters, each with its place."""
    rows: list[RowFrame]
    tables: set[RowPlace]
    """The parameters that it has rows of, perhaps no rows."""
    presence: Presence | None
    """The parameters that it has whole, once it is sealed."""
    waits: bool
    """Whether it waits for memory."""

    @property
    def elements(self) -> int:
        """About how many elements it has."""

    def release(self) -> None:
        """Drop the frames and free their memory."""


class Promise(Generic[T]):
    """A result that may still be pending. It creates no asyncio future unless a caller waits for it."""

    __slots__ = ("_error", "_future", "_result", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._result: T | None = None
        self._error: OptdError | None = None
        self._future: asyncio.Future[T] | None = None

    def succeed(self, result: T) -> None:
        """Set the result, unless it is already done."""
        if not self.is_done:
            self.is_done, self._result = True, result
            if self._future is not None and not self._future.done():
                self._future.set_result(result)

    def fail(self, error: OptdError) -> None:
        """Set an error, unless it is already done."""
        if not self.is_done:
            self.is_done, self._error = True, error
            if self._future is not None and not self._future.done():
                self._future.set_exception(error)
                # Marks the exception as retrieved: all callers may have gone away.
                self._future.exception()

    def get(self) -> T:
        """Return the result, which must be set, or raise the error."""
        if self._error is not None:
            raise self._error
        assert self.is_done
        return self._result  # type: ignore[return-value]

    async def wait(self) -> T:
        """Wait for the result and return it, or raise the error. Safe to cancel."""
        if self.is_done:
            return self.get()
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._future)


class Push:
    """One push. Its gradient lies in the worker's shared memory, is received into a spool, or into its round."""

    __slots__ = (
        "_receiving",
        "begun",
        "callers",
        "digest",
        "header",
        "id",
        "is_lone",
        "is_there",
        "outcome",
        "shared",
        "spool",
        "successor",
        "wall",
    )

    def __init__(self, header: PushHeader, shared: Gradient | None = None, wall: float = 0.0) -> None:
        self.header = header
        self.id = PushId(header.worker, header.epoch, header.sequence)
        self.shared = shared
        self.wall = wall
        """When it was announced, in seconds since the Unix epoch."""
        self.digest = Digest(header)
        self.is_there = shared is not None
        """Whether its whole gradient is there."""
        self.spool: Spool | None = None
        """What holds its gradient until its round is reduced, if its policy wants it before the round begins."""
        self.is_lone = False
        """Whether its policy has made it a step of its own."""
        self.begun: Promise[Receiver] = Promise()
        """What takes its gradient: its spool at once, or its round as soon as that has begun."""
        self.outcome: Promise[PushResult] = Promise()
        self.successor: Push | None = None
        """The same push sent again by a later call, which replaces this one."""
        self.callers = 0
        """How many calls send it or wait for its outcome."""
        self._receiving: asyncio.Timeout | None = None

    async def receive(self, source: GradientSource, receiver: Receiver) -> None:
        """Receive the gradient; raise what `source.receive` raises, or at once why the push has ended meanwhile."""
        if self.spool is None:
            await source.receive(receiver.write)  # its round tells it at its next message
            return
        try:
            async with asyncio.timeout(None) as self._receiving:
                await source.receive(receiver.write)
        except TimeoutError:
            if not self.outcome.is_done:
                raise
            self.outcome.get()
        finally:
            self._receiving = None

    @property
    def is_wanted(self) -> bool:
        """Whether a call waits for it, or may come back to it: a gradient in shared memory stays there."""
        return self.callers > 0 or self.shared is not None

    def fail(self, error: OptdError) -> None:
        """Fail the push for all of its callers."""
        self.begun.fail(error)
        self.outcome.fail(error)
        receiving, self._receiving = self._receiving, None
        if receiving is not None:  # once: a timeout that has run out cannot be set again
            receiving.reschedule(0)
        self.release()

    def release(self) -> None:
        """Free the memory of a gradient that is needed no longer."""
        if self.spool is not None:
            self.spool.release()


def has_gradient(gradient: Gradient) -> bool:
    """Whether any parameter has a gradient."""
    return bool(gradient.rows) or any(flags.any() for row in gradient.presence for flags in row)
