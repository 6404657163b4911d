"""`sync`: a step takes one push from each of a fixed number of workers."""

from optd_server.engine.rounds.policies.base import NONE, Decisions, HoldPush, Indifferent, MakeStep, PushId
from optd_wire.errors import InvalidPolicy
from optd_wire.values import Sync

MAX_WORKERS = 4096


class SyncPolicy(Indifferent):
    """Collects a round of pushes from different workers, and takes a step when it is complete.

    A round is reduced in the order of the workers' names, so the same pushes give the same bits whatever the order of
    their arrival. Raises `InvalidPolicy` if the number of workers is out of range.
    """

    slots = 1  # all pushes of a round are added up in one

    def __init__(self, given: Sync) -> None:
        if not 1 <= given.workers <= MAX_WORKERS:
            raise InvalidPolicy(workers=given.workers, most=MAX_WORKERS)
        self.most = given.workers
        self._round: dict[str, PushId] = {}

    def offered(self, push: PushId, now: float) -> Decisions:
        """Adds a push to the round; takes the step if the round is complete."""
        self._round[push.worker] = push
        missing = self.most - len(self._round)
        if missing:
            return (HoldPush(push, f"pushes of {missing} more worker{'s' * (missing > 1)}"),)
        complete = tuple(self._round[worker] for worker in sorted(self._round))
        self._round.clear()
        return (MakeStep(complete),)

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """Takes a push out of the round."""
        if self._round.get(push.worker) == push:
            del self._round[push.worker]
        return NONE
