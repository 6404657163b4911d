"""The rejections of a job: counted by reason, with the most recent ones kept in full."""

from collections import Counter, deque
from dataclasses import replace

from optd_wire.errors import NonfiniteGradient, OptdError
from optd_wire.values import GradientSummary, Rejection

KEPT = 64
"""How many rejections are kept in full."""
LONGEST = 500
"""How many characters of a message are kept: messages quote values that callers sent."""


class Rejections:
    """Counts by reason, and recent entries. Memory is bounded because the reasons are a fixed set."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: deque[Rejection] = deque(maxlen=KEPT)
        self._nonfinite = GradientSummary()
        """The number of pushes that were refused for a NaN or an infinity, and the last such push."""

    @property
    def total(self) -> int:
        """The number of rejections of any reason."""
        return self.counts.total()

    def add(self, error: OptdError, *, worker: str, version: int, wall: float) -> None:
        """Records one rejection; `wall` is in seconds since the Unix epoch."""
        self.counts[error.reason] += 1
        self.recent.append(
            Rejection(
                unix_ms=int(wall * 1000),
                worker=worker[:200],
                reason=error.reason,
                message=str(error)[:LONGEST],
                version=version,
            )
        )

    def note_nonfinite(self, error: NonfiniteGradient, worker: str, version: int, wall: float) -> None:
        """Records the entry for which a push was refused."""
        self._nonfinite = GradientSummary(
            nonfinite=self._nonfinite.nonfinite + 1,
            nonfinite_unix_ms=int(wall * 1000),
            nonfinite_version=version,
            nonfinite_worker=worker,
            nonfinite_parameter=str(error.values["parameter"]),
        )

    def added_to(self, summary: GradientSummary) -> GradientSummary:
        """Returns the job's gradient counters plus the refused pushes, with the later of their two last entries."""
        own = self._nonfinite
        if not own.nonfinite:
            return summary
        total = own.nonfinite + summary.nonfinite
        if summary.nonfinite and summary.nonfinite_unix_ms > own.nonfinite_unix_ms:
            return replace(summary, nonfinite=total)
        return replace(
            summary,
            nonfinite=total,
            nonfinite_unix_ms=own.nonfinite_unix_ms,
            nonfinite_version=own.nonfinite_version,
            nonfinite_worker=own.nonfinite_worker,
            nonfinite_parameter=own.nonfinite_parameter,
        )
