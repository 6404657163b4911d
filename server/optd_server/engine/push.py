"""A push that has been received and waits for its step."""

import asyncio
from dataclasses import dataclass, field

from optd_server.store.gradients import GradientSlot
from optd_wire.errors import OptdError
from optd_wire.values import PushHeader, PushResult


def _future() -> asyncio.Future[PushResult]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class Push:
    """Identity, gradient, and the outcome that its callers wait for."""

    header: PushHeader
    slot: GradientSlot
    outcome: asyncio.Future[PushResult] = field(default_factory=_future)

    def succeed(self, result: PushResult) -> None:
        """Tells the callers what the push has become."""
        if not self.outcome.done():
            self.outcome.set_result(result)

    def fail(self, error: OptdError) -> None:
        """Tells the callers that the push has come to nothing."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            # All callers may have gone away; then nobody asks for the exception.
            self.outcome.exception()
