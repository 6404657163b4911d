"""How fast a job moves: steps a second over the last moments."""

from collections import deque


class Pace:
    """Versions and when they were seen, for `window` seconds."""

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, version: int, now: float) -> None:
        """A job had this version at `now`, in seconds of any clock that only goes forward."""
        self._seen.append((now, version))
        # One from before the window stays: between it and the first one inside, steps were made too.
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window:
            self._seen.popleft()

    def steps_per_second(self, now: float) -> float | None:
        """The mean up to `now`; None before the version has changed or enough time has passed."""
        if not self._seen or (len(self._seen) == 1 and now - self._seen[0][0] < self._window):
            return None
        began, first = self._seen[0]
        return (self._seen[-1][1] - first) / max(now - began, 1e-3)
