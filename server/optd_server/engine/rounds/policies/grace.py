"""The grace window of a round: how long it waits for the others once enough workers have pushed."""

from collections import deque
from statistics import median
from typing import Literal

REMEMBERED = 64
"""How many arrivals the window follows."""
FEWEST = 4
"""So many arrivals must be known; until then the window follows how long rounds take."""
ROUNDS = 3.0
"""Until enough arrivals are known, a round waits as long as so many of the rounds before it took."""
AT_FIRST = 1.0
"""In seconds: the shortest window until enough arrivals are known."""
SPREADS = 4.0
"""How many standard deviations the window extends beyond the median."""
NORMAL = 1.4826
"""The standard deviation of normally distributed numbers, as a multiple of their median absolute deviation."""
SHORTEST = 0.01
"""In seconds: arrivals that always come together must not make the window vanish."""


class Grace:
    """A window of a fixed length in seconds; with "auto" one that follows when the gradients of past rounds arrived.

    The adaptive window is the median of their delays behind the first one of their round, plus four times their spread.
    Medians ignore a few stragglers, so these cannot stretch it; late gradients count too, so a window that is too short
    grows again. Until a few gradients have arrived, it is three times as long as the longest round so far took, from
    the end of the one before it; in the first round there is none.
    """

    def __init__(self, given: float | Literal["auto"] | None) -> None:
        self._fixed = 0.0 if given is None else given
        self._delays: deque[float] = deque(maxlen=REMEMBERED)
        self._closed: float | None = None
        self._longest: float | None = None

    @property
    def seconds(self) -> float | None:
        """The length of the window; None: as long as it takes."""
        if self._fixed != "auto":
            return self._fixed
        if len(self._delays) < FEWEST:
            return None if self._longest is None else max(AT_FIRST, ROUNDS * self._longest)
        middle = median(self._delays)
        spread = NORMAL * median([abs(delay - middle) for delay in self._delays])
        return max(SHORTEST, middle + SPREADS * spread)

    def note_close(self, now: float) -> None:
        """Note that a round has closed."""
        if self._closed is not None:
            self._longest = max(self._longest or 0.0, now - self._closed)
        self._closed = now

    def note(self, delay: float) -> None:
        """Note how long after the first gradient of its round another one arrived."""
        self._delays.append(delay)
