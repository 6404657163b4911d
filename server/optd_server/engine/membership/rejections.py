"""What a job has refused, and why: counted by reason, the last ones kept in full."""

from collections import Counter, deque

from optd_wire.errors import OptdError
from optd_wire.values import Rejection

KEPT = 64
# Messages repeat values that callers sent; what is kept of one is bounded too.
LONGEST = 500


class Rejections:
    """Counts and recent entries. Bounded: reasons are a fixed set."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: deque[Rejection] = deque(maxlen=KEPT)

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
