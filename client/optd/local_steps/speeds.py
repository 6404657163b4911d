"""How many steps a worker takes between two syncs, so that workers of unequal speed arrive together.

Liu et al., "Asynchronous Local-SGD Training for Language Modeling", https://arxiv.org/abs/2401.09135, section 5.2
(dynamic local updates, DyLU): the fastest worker takes the most steps, the others as many as they can in its time.
"""

from collections.abc import Callable, Iterable
from typing import Any

from optd_wire.errors import InvalidRequest

AUTO = "auto"
DEFAULT_MOST = 100
"""The steps of the fastest worker, unless they are given."""
_FIRST_SHARE = 10
"""The first cycle, after which speeds are known, is this many times shorter."""


def read_every(every: Any) -> tuple[int, bool]:
    """The most steps between two syncs, and whether they follow the speeds: `every` is H, "auto" or "auto:H"."""
    if isinstance(every, int) and not isinstance(every, bool):
        return every, False
    if isinstance(every, str):
        word, colon, number = every.partition(":")
        if word == AUTO and not colon:
            return DEFAULT_MOST, True
        if word == AUTO and number.isascii() and number.isdigit():
            return int(number), True
    raise InvalidRequest(problem=f"every must be a number of steps, 'auto' or 'auto:H', got {every!r}")


def first_steps(most: int) -> int:
    """The steps of the cycle after which speeds are known."""
    return -(-most // _FIRST_SHARE)


def steps_for(own: float, others: Iterable[float], most: int) -> int:
    """The steps of a worker of speed `own`, in steps a second, beside `others`; speeds of 0 are unknown."""
    if own <= 0:
        return most
    fastest = max((speed for speed in others if speed > 0), default=own)
    return max(1, int(most * min(1.0, own / fastest)))


class Stopwatch:
    """Measures how fast a worker computes: the time between syncs counts, that of syncs does not.

    `clock` tells seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._seconds = 0.0
        self._steps = 0
        self.speed = 0.0
        """Steps a second since the measurement before the last; 0 before the first."""

    def stop(self) -> None:
        """A step has been computed; not counted if the watch was not running, as at the first step."""
        if self._since is not None:
            self._seconds += self._clock() - self._since
            self._steps += 1
            self._since = None

    def start(self) -> None:
        """The next step begins."""
        self._since = self._clock()

    def measure(self) -> float:
        """The speed since the last measurement, or, if nothing was counted since, that one's."""
        if self._steps and self._seconds > 0:
            self.speed = self._steps / self._seconds
            self._steps, self._seconds = 0, 0.0
        return self.speed
