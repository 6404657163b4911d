"""The clock of the running server."""

import time


class SystemClock:
    """The clocks of the machine; see `engine.clock.Clock`."""

    def monotonic(self) -> float:
        """Seconds since some time in the past."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()
