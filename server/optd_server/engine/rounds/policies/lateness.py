"""Tells which pushes of a sync job have missed their round."""

from optd_server.engine.progress import BEGINNING, Position, Progress
from optd_server.engine.rounds.policies.base import Offer


class Lateness:
    """Knows how far the job has come, and what each worker has missed.

    A push is late if a round has replaced the weights that its gradient was computed on. If its worker was in the last
    round, that worker knows, and its push counts all the same; but not a push of a fragment, whose last round may have
    been an earlier one.

    Accumulated rounds do not replace the weights. There a worker that has missed one is told so once, and its next push
    counts. Only that is not part of the job's state: after a restart of the server a worker may be told once more.
    """

    def __init__(self, progress: Progress) -> None:
        self._at = dict(progress.at)
        self._counted = dict(progress.counted)
        self._told: dict[str, dict[int, Position]] = {}
        """By worker that takes part and by fragment, where the job was when it learnt that it was late, or joined."""

    @property
    def version(self) -> int:
        """The job's version."""
        return self.at(0).version

    def at(self, fragment: int) -> Position:
        """Return the end of the last round of a fragment."""
        return self._at.get(fragment, BEGINNING)

    def is_late(self, offer: Offer) -> bool:
        """Whether a round has closed without this push."""
        worker, fragment, at = offer.id.worker, offer.fragment, self.at(offer.fragment)
        if Position(offer.base) >= at or (not fragment and self._counted.get(worker, BEGINNING) >= at):
            return False
        return offer.base < at.version or self._told_of(worker, fragment) < at

    def tell(self, worker: str, fragment: int) -> bool:
        """Note that a worker learns that its push is late. Return False if it has learnt that of this round before."""
        at, is_new = self.at(fragment), self._told_of(worker, fragment) < self.at(fragment)
        if worker in self._told:
            self._told[worker][fragment] = at
        return is_new

    def advance(self, workers: tuple[str, ...], fragment: int, at: Position) -> bool:
        """Note that a round of these workers has ended; return False if it was skipped, as for a NaN."""
        for worker in workers:
            if worker in self._told:
                self._counted[worker] = at
        if at <= self.at(0):
            return False
        self._at[0] = self._at[fragment] = at
        return True

    def join(self, worker: str) -> None:
        """Begin anew with a worker: it has missed none of the rounds that are accumulated now."""
        self._told[worker] = {0: self.at(0)}
        self._counted.pop(worker, None)

    def resume(self, worker: str) -> None:
        """Go on with a worker that has joined before."""
        self._told.setdefault(worker, {})

    def forget(self, worker: str) -> None:
        """Forget a worker that has gone."""
        self._told.pop(worker, None)
        self._counted.pop(worker, None)

    def _told_of(self, worker: str, fragment: int) -> Position:
        return self._told.get(worker, {}).get(fragment, BEGINNING)
