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
        self._opened: float | None = None
        self._live: dict[str, None] = {}

    def offered(self, push: PushId, now: float) -> Decisions:
        """Add a push to the round; take the step if the round is complete."""
        self._round[push.worker] = push
        self._opened = now if self._opened is None else self._opened
        missing = self.most - len(self._round)
        if missing:
            return (HoldPush(push, f"pushes of {missing} more worker{'s' * (missing > 1)}"),)
        complete = tuple(self._round[worker] for worker in sorted(self._round))
        self._round.clear()
        self._opened = None
        return (MakeStep(complete),)

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """Take a push out of the round."""
        if self._round.get(push.worker) == push:
            del self._round[push.worker]
        if not self._round:
            self._opened = None
        return NONE

    def joined(self, worker: str, now: float) -> Decisions:
        """Note that a worker takes part; nothing follows."""
        self._live[worker] = None
        return NONE

    def left(self, worker: str, now: float) -> Decisions:
        """Note that a worker is gone; nothing follows."""
        self._live.pop(worker, None)
        return NONE

    expired = left

    def status(self, now: float) -> tuple[RoundStatus, ...]:
        """Describe the open round."""
        if not self._round:
            return ()
        missing = tuple(sorted(worker for worker in self._live if worker not in self._round))
        wanted = self.most - len(self._round)
        places = max(0, wanted - len(missing))
        parts = [f"pushes of {', '.join(missing)}"] * bool(missing) + [f"{places} more to join"] * bool(places)
        return (
            RoundStatus(
                fragment=0,
                opened=self._opened,
                arrived=tuple(sorted(self._round)),
                arriving=(),
                missing=missing,
                places=places,
                deadline=None,
                release=" and ".join(parts),
            ),
        )
