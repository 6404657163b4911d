"""What a job has refused, and why: counted by reason, the last ones kept in full."""

from collections import Counter, deque
from dataclasses import replace

from optd_wire.errors import NonfiniteGradient, OptdError
from optd_wire.values import GradientSummary, Rejection

KEPT = 64
# Messages repeat values that callers sent; what is kept of one is bounded too.
LONGEST = 500


class Rejections:
    """Counts and recent entries. Bounded: reasons are a fixed set."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: deque[Rejection] = deque(maxlen=KEPT)
        self._nonfinite = GradientSummary()
        """Of pushes that were refused for a NaN or an infinity: how many, and the last one."""

    @property
    def total(self) -> int:
        """How many there were."""
        return self.counts.total()

    def add(self, error: OptdError, *, worker: str, version: int, wall: float) -> None:
        """Notes one rejection; `wall` is in seconds of the epoch."""
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
        """Notes the entry that a push was refused for."""
        self._nonfinite = GradientSummary(
            nonfinite=self._nonfinite.nonfinite + 1,
            nonfinite_unix_ms=int(wall * 1000),
            nonfinite_version=version,
            nonfinite_worker=worker,
            nonfinite_parameter=str(error.values["parameter"]),
        )

    def added_to(self, summary: GradientSummary) -> GradientSummary:
        """The counts of gradients of a job, with those that were refused; the later entry of both is told."""
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
