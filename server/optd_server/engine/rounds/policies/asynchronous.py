"""`async`: every push is a step of its own, in order of arrival."""

from optd_server.engine.rounds.policies.base import Decisions, Indifferent, MakeStep, PushId
from optd_wire.values import Async

SLOTS = 4
"""One gradient is in a step while up to three others arrive."""


class AsyncPolicy(Indifferent):
    """Takes a step for every push."""

    slots = SLOTS
    most = 1

    def __init__(self, _: Async) -> None:
        super().__init__()

    def offered(self, push: PushId, now: float) -> Decisions:
        """Makes a step of the push."""
        return (MakeStep((push,)),)
