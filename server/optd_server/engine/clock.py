"""The clock that the engine is given. It reads no other, so a test can set the time."""

from typing import Protocol


class Clock(Protocol):
    """A monotonic clock and a wall clock, both in seconds."""

    def monotonic(self) -> float:
        """Returns the time for leases and timeouts. It never goes back, and its zero is arbitrary."""

    def wall(self) -> float:
        """Returns the time since the Unix epoch, for people to read. It may jump."""
