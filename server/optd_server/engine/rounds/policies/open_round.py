"""An open round of a sync job."""

from dataclasses import dataclass, field

from optd_server.engine.rounds.policies.base import Offer, PushId


@dataclass(slots=True)
class OpenRound:
    """The pushes of a round, by worker."""

    arrived: dict[str, Offer] = field(default_factory=dict)
    arriving: dict[str, Offer] = field(default_factory=dict)
    """Pushes whose gradients are on their way."""
    opened: float | None = None
    """When its first gradient arrived."""

    def has(self, push: PushId) -> bool:
        """Whether a push is part of this round."""
        return self.awaits(push) or (push.worker in self.arrived and self.arrived[push.worker].id == push)

    def awaits(self, push: PushId) -> bool:
        """Whether the gradient of a push is on its way to this round."""
        offer = self.arriving.get(push.worker)
        return offer is not None and offer.id == push

    def arrive(self, worker: str, now: float) -> float:
        """Note that the gradient of a worker is there; return for how long the round has been open."""
        self.arrived[worker] = self.arriving.pop(worker)
        if self.opened is None:
            self.opened = now
        return now - self.opened

    def remove(self, worker: str) -> None:
        """Take the push of a worker out."""
        self.arrived.pop(worker, None)
        self.arriving.pop(worker, None)
        if not self.arrived:
            self.opened = None

    @property
    def is_empty(self) -> bool:
        """Whether it has no pushes."""
        return not self.arrived and not self.arriving

    def offers(self) -> list[Offer]:
        """Return its pushes in the order of their workers' names."""
        offers = {**self.arriving, **self.arrived}
        return [offers[worker] for worker in sorted(offers)]
