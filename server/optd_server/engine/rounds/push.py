"""A push on its way: who sent it, how its gradient comes, and what its callers wait for."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from optd_server.engine.rounds.policies.base import PushId
from optd_server.store.gradients import Gradient
from optd_wire.errors import OptdError, RoundBroken
from optd_wire.frames import Received
from optd_wire.values import PushHeader, PushResult

T = TypeVar("T")


class Upload(Protocol):
    """The gradient of a push, which its sender keeps until it is asked for."""

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        """Hands it to `write`, frames by frames; raises what `write` raises, or what breaks it off."""

    async def skip(self) -> None:
        """Lets it pass by."""

    def park(self) -> None:
        """Says that what has come waits for others, which may take long: room for it is planned for the job."""


class Receiver(Protocol):
    """Takes the gradients of a round's pushes."""

    def must_wait(self, push: "Push", frames: Sequence[Received]) -> bool:
        """Whether other pushes have to write first at the places of these frames."""

    async def write(self, push: "Push", frames: Sequence[Received]) -> None:
        """Adds received frames, when it is their turn; raises what is wrong with one, or what ended the round."""


class Promise(Generic[T]):
    """A result that is still to come. Costs no future while nobody waits for it."""

    __slots__ = ("_error", "_future", "_result", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._result: T | None = None
        self._error: OptdError | None = None
        self._future: asyncio.Future[T] | None = None

    def succeed(self, result: T) -> None:
        """Gives the result, unless there is one."""
        if not self.is_done:
            self.is_done, self._result = True, result
            if self._future is not None and not self._future.done():
                self._future.set_result(result)

    def fail(self, error: OptdError) -> None:
        """Gives an error in its place, unless there is a result."""
        if not self.is_done:
            self.is_done, self._error = True, error
            if self._future is not None and not self._future.done():
                self._future.set_exception(error)
                # All callers may have gone away; then nobody asks for the exception.
                self._future.exception()

    def get(self) -> T:
        """The result, which must be there; raises the error in its place."""
        if self._error is not None:
            raise self._error
        assert self.is_done
        return self._result  # type: ignore[return-value]

    async def wait(self) -> T:
        """Waits for the result; raises the error in its place. Safe to cancel."""
        if self.is_done:
            return self.get()
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._future)


class Push:
    """One push. Its gradient lies in memory that the worker shares, or is received once the push's round begins."""

    __slots__ = ("begun", "header", "id", "outcome", "shared", "successor", "waits_for", "wall")

    def __init__(self, header: PushHeader, shared: Gradient | None = None, wall: float = 0.0) -> None:
        self.header = header
        self.id = PushId(header.worker, header.epoch, header.sequence)
        self.shared = shared
        self.wall = wall
        """When it was announced, in seconds since the epoch."""
        self.waits_for = ""
        """What it waits for before its round begins, while it does."""
        self.begun: Promise[Receiver] = Promise()
        """The round that it is part of, once that is complete and has room."""
        self.outcome: Promise[PushResult] = Promise()
        self.successor: Push | None = None
        """The same push, sent again by another call, which has taken this one's place."""

    def fail(self, error: OptdError) -> None:
        """Tells the callers that the push has come to nothing."""
        self.begun.fail(error)
        self.outcome.fail(error)


def has_gradient(gradient: Gradient) -> bool:
    """Whether any parameter has a gradient."""
    return bool(gradient.rows) or any(flags.any() for row in gradient.presence for flags in row)


async def outcome(known: PushResult | Push) -> PushResult:
    """The result of a push for a call that repeats it. The caller may be cancelled; the push goes on."""
    while isinstance(known, Push):
        push = known
        try:
            known = await push.outcome.wait()
        except RoundBroken:
            if push.successor is None:
                raise
            known = push.successor
    return replace(known, repeat=True)
