"""The time, as the engine is given it: it reads no clock of its own, so a test can make the time up."""

from typing import Protocol


class Clock(Protocol):
    """Two clocks, each in seconds."""

    def monotonic(self) -> float:
        """The time that leases and waits are measured by: it never goes back, and its zero means nothing."""

    def wall(self) -> float:
        """The time since the epoch, which people read. It may jump."""
