"""`bounded`: every push is a step of its own, but nobody gets far ahead of the slowest worker.

A worker's clock counts its steps. One that joins begins with the lowest clock of the others, so nobody has to wait for
it to catch up, and one that joins again is not behind its own clock. The clocks are not kept on disk: after a restart
of the server all begin together.
"""

from optd_server.engine.rounds.policies.base import (
    NONE,
    Decisions,
    EndedRound,
    HoldPush,
    Indifferent,
    MakeStep,
    Offer,
    PushId,
    RoundStatus,
)
from optd_wire.values import Bounded

SLOTS = 4
"""One gradient is in a step while up to three others arrive."""
REMEMBERED = 1024
"""The clocks of so many workers that have gone."""


class BoundedPolicy(Indifferent):
    """Holds the push of a worker that is more than `staleness` steps ahead of the slowest other one."""

    slots = SLOTS
    most = planned = 1

    def __init__(self, given: Bounded) -> None:
        self._bound = given.staleness
        self._clocks: dict[str, int] = {}
        """How many steps each live worker has made."""
        self._ended: dict[str, int] = {}
        """The clocks of workers that have gone, the last ones."""
        self._held: dict[PushId, float] = {}
        """The pushes that wait, and since when."""

    def offered(self, offer: Offer, now: float) -> Decisions:
        """Make a step of the push unless its worker is too far ahead."""
        if self._ahead(offer.id.worker) <= self._bound:
            return (MakeStep((offer.id,)),)
        self._held[offer.id] = now
        return (HoldPush(offer.id),)

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """Forget a push."""
        self._held.pop(push, None)
        return NONE

    def joined(self, worker: str, now: float) -> Decisions:
        """Begin a worker's clock at the lowest of the others, or where it was before."""
        others = [clock for name, clock in self._clocks.items() if name != worker]
        own = self._clocks.get(worker, self._ended.pop(worker, 0))
        self._clocks[worker] = max(own, min(others, default=0))
        return self._released()

    def left(self, worker: str, now: float) -> Decisions:
        """Wait no longer for a worker."""
        if worker in self._clocks:
            self._ended[worker] = self._clocks.pop(worker)
            if len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]
        return self._released()

    expired = left

    def ended(self, round_: EndedRound, now: float) -> Decisions:
        """Advance the clocks of workers whose pushes were applied."""
        for worker in round_.workers:
            if worker in self._clocks:
                self._clocks[worker] += 1
        return self._released()

    def status(self, now: float) -> tuple[RoundStatus, ...]:
        """Describe each push that waits, and the workers that it waits for."""
        return tuple(self._status(held.worker, since) for held, since in self._held.items())

    def _status(self, worker: str, since: float) -> RoundStatus:
        limit = self._clocks.get(worker, 0) - self._bound
        slower = tuple(sorted(name for name, clock in self._clocks.items() if clock < limit and name != worker))
        return RoundStatus(
            fragment=0,
            opened=since,
            arrived=(worker,),
            arriving=(),
            missing=slower,
            places=0,
            deadline=None,
            release=f"steps of the slower workers, until {worker} is at most {self._bound} steps ahead of each",
        )

    def _ahead(self, worker: str) -> int:
        mine = self._clocks.get(worker, 0)
        return mine - min((clock for name, clock in self._clocks.items() if name != worker), default=mine)

    def _released(self) -> Decisions:
        due = [push for push in self._held if self._ahead(push.worker) <= self._bound]
        for push in due:
            del self._held[push]
        return [MakeStep((push,)) for push in due]
