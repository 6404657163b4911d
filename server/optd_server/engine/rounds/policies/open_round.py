"""An open round of a sync job."""

from dataclasses import dataclass, field

from optd_server.engine.rounds.policies.base import Offer, PushId


@dataclass(slots=True)
class OpenRound:
    """The pushes of a round, by worker."""

    arrived: dict[str, Offer] = field(default_factory=dict)
    arriving: dict[str, Offer] = field(default_factory=dict)
    """Pushes whose gradients are on their way."""
    began: float | None = None
    """When its first push was announced."""
    times: dict[str, float] = field(default_factory=dict)
    """When each gradient arrived."""

    @property
    def opened(self) -> float | None:
        """When the first of the gradients that are there arrived."""
        return min(self.times.values(), default=None)

    def announce(self, offer: Offer, now: float) -> None:
        """Add a push whose gradient is still to come."""
        self.arriving[offer.id.worker] = offer
        if self.began is None:
            self.began = now

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
        self.times[worker] = now
        return now - min(self.times.values())

    def remove(self, worker: str) -> None:
        """Take the push of a worker out."""
        self.arrived.pop(worker, None)
        self.arriving.pop(worker, None)
        self.times.pop(worker, None)

    @property
    def is_empty(self) -> bool:
        """Whether it has no pushes."""
        return not self.arrived and not self.arriving

    def offers(self) -> list[Offer]:
        """Return its pushes in the order of their workers' names."""
        offers = {**self.arriving, **self.arrived}
        return [offers[worker] for worker in sorted(offers)]
