"""The grace window of a round: how long it waits for the others once enough workers have pushed."""

from collections import deque
from statistics import median
from typing import Literal

REMEMBERED = 16
"""How many arrivals of each worker, and how many rounds, the window follows."""
FEWEST = 4
"""So many rounds must be known; until then the window follows how long rounds take."""
ROUNDS = 3.0
"""Until enough rounds are known, a round waits as long as so many of the rounds before it took."""
AT_FIRST = 1.0
"""In seconds: the shortest window until enough rounds are known."""
BEFORE_ALL = 10.0
"""In seconds: how long the first round waits for workers that have not joined yet, once all others are there."""
SPREADS = 4.0
"""How many standard deviations the window extends beyond the median."""
NORMAL = 1.4826
"""The standard deviation of normally distributed numbers, as a multiple of their median absolute deviation."""
LEAST = 0.1
"""The shortest window, as a part of the time between rounds: who mostly comes in time may be late by chance."""


class Grace:
    """A window of a fixed length in seconds; with "auto" one that follows when the gradients of each worker arrive.

    The adaptive window is long enough for every worker that keeps pace: for the median of its delays behind the first
    gradient of their rounds plus four times their spread, and for its last delay. A worker keeps pace if that is at
    most the time from the end of a round to the first gradient of the next one, so nobody can make rounds take more
    than twice as long. The window is at least a tenth of that time. Late gradients count too: who was late once, by a
    little, is waited for in the next round.

    Until a few rounds are known, the window is three times as long as the longest round so far took, from the
    announcement of its first push. The first round waits for all workers that live, and for others some seconds more.
    """

    def __init__(self, given: float | Literal["auto"] | None) -> None:
        self._fixed = 0.0 if given is None else given
        self._delays: dict[str, deque[float]] = {}
        """By worker."""
        self._paces: deque[float] = deque(maxlen=REMEMBERED)
        """The times from the end of a round to the first gradient of the next one."""
        self._closed: float | None = None
        """When the last round closed."""
        self._longest: float | None = None

    @property
    def seconds(self) -> float | None:
        """The length of the window; None: as long as it takes."""
        if self._fixed != "auto":
            return self._fixed
        if len(self._paces) < FEWEST:
            return None if self._longest is None else max(AT_FIRST, ROUNDS * self._longest)
        pace = median(self._paces)
        needed = [seconds for delays in self._delays.values() for seconds in _needed(delays) if seconds <= pace]
        return max([LEAST * pace, *needed])

    def note_round(self, began: float, opened: float, now: float) -> None:
        """Note that a round closes: its first push was announced at `began`, its first gradient came at `opened`."""
        self._longest = max(self._longest or 0.0, now - began)
        if self._closed is not None:
            self._paces.append(max(0.0, opened - self._closed))
        self._closed = now

    def note(self, worker: str, delay: float) -> None:
        """Note how long after the first gradient of its round that of a worker arrived."""
        self._delays.setdefault(worker, deque(maxlen=REMEMBERED)).append(delay)

    def forget(self, worker: str) -> None:
        """Forget a worker that has gone."""
        self._delays.pop(worker, None)


def _needed(delays: deque[float]) -> tuple[float, float]:
    """Return how long a round must wait for a worker as it mostly is, and as it was last."""
    middle = median(delays)
    spread = NORMAL * median([abs(delay - middle) for delay in delays])
    return middle + SPREADS * spread, delays[-1]
