"""Track which elements of a flat range have been written, and which parameters are therefore complete."""

from bisect import bisect_right

import numpy as np
import numpy.typing as npt


class Coverage:
    """A set of half-open ranges that do not overlap. Adding a range costs O(log n) if ranges arrive in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The written ranges in ascending order; adjacent ranges are joined."""
        return list(zip(self._starts, self._stops, strict=True))

    def is_just(self, start: int, stop: int) -> bool:
        """Whether `[start, stop)` is the only range that has been written."""
        return self._starts == [start] and self._stops == [stop]

    def add(self, start: int, stop: int) -> int | None:
        """Add `[start, stop)`; return its first element that was already written, or None if there is none.

        A range that overlaps another one is not added. An empty range only marks its position as touched.
        """
        index = bisect_right(self._starts, start)
        if index and self._stops[index - 1] > start:
            return start if stop > start else None
        following = index
        while following < len(self._starts) and self._starts[following] < stop:
            if self._stops[following] > self._starts[following]:
                return self._starts[following]
            following += 1
        # The ranges within the new one are empty, so it replaces them.
        del self._starts[index:following], self._stops[index:following]
        joins_left = index > 0 and self._stops[index - 1] == start
        joins_right = index < len(self._starts) and self._starts[index] == stop
        if joins_left and joins_right:
            self._stops[index - 1] = self._stops.pop(index)
            del self._starts[index]
        elif joins_left:
            self._stops[index - 1] = stop
        elif joins_right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._stops.insert(index, stop)
        return None

    def of(
        self, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return two masks over parameters at `starts` with `sizes`: completely written, and only partly written.

        A parameter without elements is complete if a range begins, ends or passes at its position.
        """
        stops = starts + sizes
        if not self._starts:
            nothing = np.zeros(starts.shape, np.bool_)
            return nothing, nothing.copy()
        begins = np.asarray(self._starts, np.int64)
        ends = np.asarray(self._stops, np.int64)
        before = np.searchsorted(begins, starts, side="right") - 1
        whole = (before >= 0) & (ends[before] >= stops)
        filled = ends > begins
        begins, ends = begins[filled], ends[filled]
        following = np.searchsorted(ends, starts, side="right")
        touched = np.append(begins, np.iinfo(np.int64).max)[following] < stops
        return whole, touched & ~whole

    def elements(self, start: int, stop: int) -> int:
        """Return the number of elements of `[start, stop)` that have been written."""
        return sum(max(0, min(stop, end) - max(start, begin)) for begin, end in self.ranges)
