"""`async`: a step for every push, in order of arrival."""

from optd_server.engine.rounds.policies.base import Decisions, Indifferent, MakeStep, PushId
from optd_wire.values import Async

# One gradient is in a step while the next ones arrive.
SLOTS = 4


class AsyncPolicy(Indifferent):
    """Every push is a step of its own."""

    slots = SLOTS
    most = 1

    def __init__(self, _: Async) -> None:
        super().__init__()

    def offered(self, push: PushId, now: float) -> Decisions:
        """Makes a step of the push."""
        return (MakeStep((push,)),)
