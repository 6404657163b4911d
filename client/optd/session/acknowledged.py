"""Which pushes of a worker the server has acknowledged, and how many of them it no longer has."""


class Acknowledged:
    """The pushes of one worker that were acknowledged, by epoch; the sequences of an epoch are 1, 2, 3, ..."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def note(self, epoch: int, sequence: int) -> None:
        """Notes that all pushes of an epoch up to a sequence were applied."""
        self._last[epoch] = sequence

    def lost_after(self, epoch: int, sequence: int) -> int:
        """How many are later than the last push that the server has. These are forgotten, so that they count once."""
        kept = {e: min(last, sequence) if e == epoch else last for e, last in self._last.items() if e <= epoch}
        lost = sum(self._last.values()) - sum(kept.values())
        self._last = kept
        return lost

    def forget(self) -> None:
        """Forgets all of them."""
        self._last.clear()
