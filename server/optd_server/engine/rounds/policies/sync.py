"""`sync`: a step takes one push from each of a fixed number of workers."""

from optd_server.engine.rounds.policies.base import (
    NONE,
    Decisions,
    HoldPush,
    Indifferent,
    MakeStep,
    PushId,
    RoundStatus,
)
from optd_server.engine.rounds.policies.words import awaited
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
        self._opened: dict[str, float] = {}
        """When each push of the round was offered."""
        self._present: dict[str, None] = {}
        """The workers that take part, in the order in which they joined."""
        self._gone: dict[str, str] = {}
        """The workers that took part and have gone, with how; the last one last."""

    def offered(self, push: PushId, now: float) -> Decisions:
        """Add a push to the round; take the step if the round is complete."""
        self._round[push.worker] = push
        self._opened[push.worker] = now
        missing = self.most - len(self._round)
        if missing:
            return (HoldPush(push, f"pushes of {missing} more worker{'s' * (missing > 1)}"),)
        complete = tuple(self._round[worker] for worker in sorted(self._round))
        self._round.clear()
        self._opened.clear()
        return (MakeStep(complete),)

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """Take a push out of the round."""
        if self._round.get(push.worker) == push:
            del self._round[push.worker], self._opened[push.worker]
        return NONE

    def joined(self, worker: str, now: float) -> Decisions:
        """Note who can take a place; nothing follows."""
        self._present[worker] = None
        self._gone.pop(worker, None)
        return NONE

    def left(self, worker: str, now: float) -> Decisions:
        """Note who has left a place; nothing follows."""
        return self._went(worker, "left")

    def expired(self, worker: str, now: float) -> Decisions:
        """Note whose place is empty; nothing follows."""
        return self._went(worker, "was lost")

    def _went(self, worker: str, how: str) -> Decisions:
        self._present.pop(worker, None)
        self._gone.pop(worker, None)
        self._gone[worker] = how
        while len(self._gone) > self.most:
            del self._gone[next(iter(self._gone))]
        return NONE

    def status(self, now: float) -> RoundStatus:
        """Describe the round; `now` makes no difference, as only pushes complete it."""
        wanted = self.most - len(self._round)
        here = sorted(worker for worker in self._present if worker not in self._round)
        places = max(0, wanted - len(here))
        lost = dict(list(self._gone.items())[len(self._gone) - min(places, len(self._gone)) :])
        return RoundStatus(
            opened=min(self._opened.values(), default=None),
            arrived=tuple(sorted(self._round)),
            missing=(*here, *sorted(lost)),
            places=places,
            release=awaited(here, wanted, lost),
        )
