"""Tells which pushes of a sync job have missed their round."""

from optd_server.engine.progress import BEGINNING, Position, Progress
from optd_server.engine.rounds.policies.base import Offer


class Lateness:
    """Compares a push with the rounds that have ended, as the job's state has them.

    A push is late if a round has replaced the weights that its gradient was computed on, unless its worker was in that
    round: such a worker may push gradients of older weights.

    Accumulated rounds do not replace the weights. There a worker that has missed one is told so once, and its next push
    counts. Who was told is not part of the state: after a restart of the server a worker may be told once more.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told: dict[str, dict[int, Position]] = {}
        """By worker and fragment, where the job was when the worker was told that it is late."""

    def is_late(self, offer: Offer) -> bool:
        """Whether a round has been applied without this push."""
        worker, fragment, progress = offer.id.worker, offer.fragment, self._progress
        at = progress.at(fragment)
        if Position(offer.base) >= at or progress.last_round(worker, fragment) >= at:
            return False
        return offer.base < at.version or max(progress.joined(worker), self._told_at(worker, fragment)) < at

    def tell(self, worker: str, fragment: int) -> bool:
        """Note that a worker is told that it is late. Return False if it was told so of the same round before."""
        at = self._progress.at(fragment)
        is_new = self._told_at(worker, fragment) < at
        self._told.setdefault(worker, {})[fragment] = at
        return is_new

    def forget(self, worker: str) -> None:
        """Forget what a worker that has gone was told."""
        self._told.pop(worker, None)

    def _told_at(self, worker: str, fragment: int) -> Position:
        return self._told.get(worker, {}).get(fragment, BEGINNING)
