"""Tells which pushes of a sync job have missed their round."""

from dataclasses import dataclass, field

from optd_server.engine.progress import BEGINNING, Position, Progress
from optd_server.engine.rounds.policies.base import Offer


@dataclass(slots=True)
class Known:
    """What is known of a worker, by fragment."""

    counted: dict[int, Position] = field(default_factory=dict)
    """The end of the last round that it was in."""
    told: dict[int, Position] = field(default_factory=dict)
    """Where the job was when the worker last learnt that it has missed a round, or joined."""


NOTHING = Known()


class Lateness:
    """Knows how far the job has come, and what each worker has missed.

    A push is late if a round has replaced the weights that its gradient was computed on, and its worker was not in that
    round. Accumulated rounds do not replace the weights: there a worker is late once, for all that it has missed.
    """

    def __init__(self, progress: Progress) -> None:
        self._at = dict(progress.at)
        self._known = {worker: Known({0: position}) for worker, position in progress.counted.items()}
        """By worker that takes part."""

    @property
    def version(self) -> int:
        """The job's version."""
        return self.at(0).version

    def at(self, fragment: int) -> Position:
        """Return the end of the last round of a fragment."""
        return self._at.get(fragment, BEGINNING)

    def is_late(self, offer: Offer) -> bool:
        """Whether a round has closed without this push."""
        at, known = self.at(offer.fragment), self._known.get(offer.id.worker, NOTHING)
        if Position(offer.base) >= at or known.counted.get(offer.fragment, BEGINNING) >= at:
            return False
        is_of_these_weights = offer.base == at.version
        return not (is_of_these_weights and known.told.get(offer.fragment, BEGINNING) >= at)

    def tell(self, worker: str, fragment: int) -> bool:
        """Note that a worker learns that its push is late. Return False if it has learnt that of this round before."""
        known, at = self._known.get(worker), self.at(fragment)
        if known is None or known.told.get(fragment) == at:
            return False
        known.told[fragment] = at
        return True

    def advance(self, workers: tuple[str, ...], fragment: int, at: Position) -> bool:
        """Note that a round of these workers has been applied; return False if that was no progress, as with a NaN."""
        if at <= self.at(0):
            return False
        self._at[0] = at
        self._at[fragment] = at
        for worker in workers:
            if worker in self._known:
                self._known[worker].counted[fragment] = at
        return True

    def join(self, worker: str) -> None:
        """Begin anew with a worker: it has missed none of the rounds that are accumulated now."""
        self._known[worker] = Known(told={0: self.at(0)})

    def resume(self, worker: str) -> None:
        """Go on with a worker that has joined before."""
        self._known.setdefault(worker, Known())

    def forget(self, worker: str) -> None:
        """Forget a worker that has gone."""
        self._known.pop(worker, None)
