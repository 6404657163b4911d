"""A push in flight: its identity, the source of its gradient, and the results that its callers wait for."""

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
    """The source of a push's gradient. Its sender keeps the gradient until it is received."""

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        """Passes the gradient to `write`, some frames at a time; raises what `write` raises, or a broken connection."""

    async def skip(self) -> None:
        """Reads the gradient and drops it."""

    def park(self) -> None:
        """Moves the message that has arrived to the job's memory budget: it may have to wait long for other pushes."""


class Receiver(Protocol):
    """Receives the gradients of a round's pushes."""

    def must_wait(self, push: "Push", frames: Sequence[Received]) -> bool:
        """Whether other pushes must write before these frames can be written."""

    async def write(self, push: "Push", frames: Sequence[Received]) -> None:
        """Adds received frames when it is their turn; raises the problem of a frame, or why the round has ended."""


class Promise(Generic[T]):
    """A result that may still be pending. It creates no asyncio future unless a caller waits for it."""

    __slots__ = ("_error", "_future", "_result", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._result: T | None = None
        self._error: OptdError | None = None
        self._future: asyncio.Future[T] | None = None

    def succeed(self, result: T) -> None:
        """Sets the result, unless it is already done."""
        if not self.is_done:
            self.is_done, self._result = True, result
            if self._future is not None and not self._future.done():
                self._future.set_result(result)

    def fail(self, error: OptdError) -> None:
        """Sets an error, unless it is already done."""
        if not self.is_done:
            self.is_done, self._error = True, error
            if self._future is not None and not self._future.done():
                self._future.set_exception(error)
                # Marks the exception as retrieved: all callers may have gone away.
                self._future.exception()

    def get(self) -> T:
        """Returns the result, which must be set, or raises the error."""
        if self._error is not None:
            raise self._error
        assert self.is_done
        return self._result  # type: ignore[return-value]

    async def wait(self) -> T:
        """Waits for the result and returns it, or raises the error. Safe to cancel."""
        if self.is_done:
            return self.get()
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._future)


class Push:
    """One push. Its gradient lies in the worker's shared memory, or is received after the push's round has begun."""

    __slots__ = ("begun", "header", "id", "outcome", "shared", "successor", "waits_for", "wall")

    def __init__(self, header: PushHeader, shared: Gradient | None = None, wall: float = 0.0) -> None:
        self.header = header
        self.id = PushId(header.worker, header.epoch, header.sequence)
        self.shared = shared
        self.wall = wall
        """When it was announced, in seconds since the Unix epoch."""
        self.waits_for = ""
        """What it waits for before its round begins, for people to read."""
        self.begun: Promise[Receiver] = Promise()
        """Its round, once all pushes of the round are announced and a slot is free."""
        self.outcome: Promise[PushResult] = Promise()
        self.successor: Push | None = None
        """The same push sent again by a later call, which replaces this one."""

    def fail(self, error: OptdError) -> None:
        """Fails the push for all of its callers."""
        self.begun.fail(error)
        self.outcome.fail(error)


def has_gradient(gradient: Gradient) -> bool:
    """Whether any parameter has a gradient."""
    return bool(gradient.rows) or any(flags.any() for row in gradient.presence for flags in row)


async def outcome(known: PushResult | Push) -> PushResult:
    """Returns the result of a push to a call that repeats it. If the caller is cancelled, the push goes on."""
    while isinstance(known, Push):
        push = known
        try:
            known = await push.outcome.wait()
        except RoundBroken:
            if push.successor is None:
                raise
            known = push.successor
    return replace(known, repeat=True)
