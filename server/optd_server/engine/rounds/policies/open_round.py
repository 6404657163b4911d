"""An open round of a sync job, and what is remembered of the last one that closed without a worker."""

from collections.abc import Collection
from dataclasses import dataclass, field

from optd_server.engine.rounds.policies.base import Offer, PushId


@dataclass(slots=True)
class OpenRound:
    """The pushes of a round, by worker."""

    arrived: dict[str, PushId] = field(default_factory=dict)
    arriving: dict[str, PushId] = field(default_factory=dict)
    """Pushes whose gradients are on their way."""
    opened: float | None = None
    """When its first gradient arrived."""

    def find(self, push: PushId) -> bool:
        """Whether a push is part of this round."""
        return push in (self.arrived.get(push.worker), self.arriving.get(push.worker))

    def arrive(self, push: PushId, now: float) -> float:
        """Note that a gradient is there; return for how long the round has been open."""
        del self.arriving[push.worker]
        self.arrived[push.worker] = push
        if self.opened is None:
            self.opened = now
        return now - self.opened

    def remove(self, push: PushId) -> None:
        """Take a push out."""
        for pushes in (self.arrived, self.arriving):
            if pushes.get(push.worker) == push:
                del pushes[push.worker]
        if not self.arrived:
            self.opened = None

    @property
    def is_empty(self) -> bool:
        """Whether it has no pushes."""
        return not self.arrived and not self.arriving

    def all(self) -> list[PushId]:
        """Return its pushes in the order of their workers' names."""
        pushes = {**self.arriving, **self.arrived}
        return [pushes[worker] for worker in sorted(pushes)]


@dataclass(slots=True)
class ClosedRound:
    """The last round that closed without a push of some worker."""

    version: int
    """The job's version when it closed."""
    members: Collection[str] = ()
    """The workers whose pushes were in it, as far as they are known."""
    opened: float | None = None
    """When its first gradient arrived, if that is known."""
    told: set[str] = field(default_factory=set)
    """The workers that know that it closed without them."""

    def is_late(self, offer: Offer) -> bool:
        """Whether a push is for this round or an earlier one.

        Its gradient tells: it was computed on weights that this round has replaced. If rounds are accumulated, a round
        does not replace the weights. Then only the first push of a worker that was left out is late.
        """
        worker = offer.id.worker
        if worker in self.members or offer.base > self.version:
            return False
        return offer.version > self.version or worker not in self.told
