"""The clocks that a running server reads."""

import time


class SystemClock:
    """The clocks of the machine, as an `engine.clock.Clock`."""

    def monotonic(self) -> float:
        """Return the seconds since some fixed moment; this clock never goes back."""
        return time.monotonic()

    def wall(self) -> float:
        """Return the seconds since the Unix epoch."""
        return time.time()
