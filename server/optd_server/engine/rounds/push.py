"""A push on its way: who it is of, where its gradient comes from, and what becomes of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from optd_server.store.gradients import Gradient
from optd_wire.errors import OptdError
from optd_wire.frames import Received
from optd_wire.values import PushHeader, PushResult


def _outcome() -> asyncio.Future[PushResult]:
    return asyncio.get_running_loop().create_future()


class Receiver(Protocol):
    """Takes the gradients of a round's pushes."""

    def must_wait(self, push: "Push", frames: Sequence[Received]) -> bool:
        """Whether other pushes have to pass first where these frames belong."""

    async def write(self, push: "Push", frames: Sequence[Received]) -> None:
        """Adds received frames, when it is their turn; raises what is wrong with one, or what ended the round."""


def _receiver() -> asyncio.Future[Receiver]:
    return asyncio.get_running_loop().create_future()


class Upload(Protocol):
    """The gradient of a push, which its sender keeps until it is asked for."""

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        """Hands it to `write`, frames by frames; raises what `write` raises, or what breaks it off."""

    async def skip(self) -> None:
        """Lets it pass by."""

    def park(self) -> None:
        """Says that what has come waits for others, which may take long: room for it is planned for the job."""


@dataclass(eq=False, slots=True)
class Push:
    """One push. Its gradient lies in memory that the worker shares, or is received once the push's round begins."""

    header: PushHeader
    shared: Gradient | None = None
    wall: float = 0.0
    """When it was announced, in seconds of the epoch."""
    begun: asyncio.Future[Receiver] = field(default_factory=_receiver)
    """The round that it is part of, once that is complete and has room."""
    outcome: asyncio.Future[PushResult] = field(default_factory=_outcome)
    successor: "Push | None" = None
    """The same push, sent again by another call, which has taken this one's place."""

    async def begins(self) -> Receiver:
        """The round that it is part of, once that begins; raises what ends the push before. Safe to cancel."""
        return await asyncio.shield(self.begun)

    async def result(self) -> PushResult:
        """What has become of it; raises what has ended it. Safe to cancel."""
        return await asyncio.shield(self.outcome)

    def succeed(self, result: PushResult) -> None:
        """Tells the callers what the push has become."""
        if not self.outcome.done():
            self.outcome.set_result(result)

    def fail(self, error: OptdError) -> None:
        """Tells the callers that the push has come to nothing."""
        for future in (self.begun, self.outcome):
            if not future.done():
                future.set_exception(error)
                # All callers may have gone away; then nobody asks for the exception.
                future.exception()
