"""What a worker has been seen to do, for people to read. It decides nothing, and does not survive a restart."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from optd_server.engine.membership.members import LEFT as HAS_LEFT
from optd_server.engine.membership.members import WENT_BACK
from optd_wire.values import EXPIRED, LEFT, ROLLED_BACK, StalenessSummary

RECENT = 256
"""How many pushes the summary of staleness covers."""


class Process(NamedTuple):
    """A worker's process as the worker itself tells of it."""

    host: str = ""
    pid: int = 0


UNKNOWN = Process()


@dataclass(slots=True)
class Activity:
    """The process of a worker, and what has become of its pushes. Times are in seconds since the Unix epoch; 0: never.

    It belongs to a worker's name, so it goes on when the name is joined again.
    """

    process: Process = UNKNOWN
    joined: float = 0.0
    last_push: float = 0.0
    """When its last push arrived."""
    last_step: float = 0.0
    """When one of its pushes last became part of a step."""
    ended: str = ""
    """How its part last ended: LEFT, EXPIRED, REPLACED or ROLLED_BACK. Not reset when it joins again."""
    ended_at: float = 0.0
    rejections: Counter[str] = field(default_factory=Counter)
    """By reason."""
    staleness: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    """That of its recent pushes, oldest first."""

    def join(self, process: Process, wall: float) -> None:
        """Note that it has joined."""
        self.process, self.joined = process, wall

    def end(self, how: str, wall: float) -> None:
        """Note how its part has ended."""
        self.ended, self.ended_at = how, wall

    def staleness_summary(self) -> StalenessSummary:
        """Return the median, the 99th percentile and the largest of the recent pushes; the nearest rank of each."""
        if not self.staleness:
            return StalenessSummary()
        ranked = sorted(self.staleness)
        p50, p99 = (ranked[-(-len(ranked) * percent // 100) - 1] for percent in (50, 99))
        return StalenessSummary(p50, p99, ranked[-1])


def end_of(fenced_by: str) -> str:
    """Return how a part ended of which only the recorded reason is left, as after a restart of the server."""
    if fenced_by == HAS_LEFT:
        return LEFT
    if fenced_by.startswith(WENT_BACK):
        return ROLLED_BACK
    return EXPIRED if fenced_by else ""
