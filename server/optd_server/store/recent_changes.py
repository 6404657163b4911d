"""Record which elements recent steps changed, so that older weights can be brought up to date by copying only these."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optd_server.store.flat import Array
from optd_server.store.rows import Ids, RowPlace

MOST_ENTRIES = 64
FEW_IDS = 1 << 20
"""The number of row ids that may be kept for a job of any size; a large job may keep more."""
FRACTION = 4
"""If more than 1 / FRACTION of a slab's elements changed, copying the whole slab is just as fast."""


@dataclass(frozen=True, slots=True)
class ChangedElements:
    """The elements of one slab that a step changed."""

    ranges: tuple[tuple[int, int], ...] = ()
    rows: tuple[tuple[RowPlace, Ids], ...] = ()
    """Changed rows of parameters; ids ascend."""

    @property
    def elements(self) -> int:
        """The number of changed elements."""
        ranges = sum(stop - start for start, stop in self.ranges)
        return ranges + sum(len(ids) * place.columns for place, ids in self.rows)

    @property
    def ids(self) -> int:
        """The number of row ids that it holds."""
        return sum(len(ids) for _, ids in self.rows)

    def copy(self, target: Array, source: Array) -> None:
        """Copy these elements from one slab to another."""
        for start, stop in self.ranges:
            target[start:stop] = source[start:stop]
        for place, ids in self.rows:
            place.table(target)[ids] = place.table(source)[ids]


ChangedBySlab = list[list[ChangedElements | None]]
"""Indexed by extent, then by slab; None for a slab that a step changed mostly or entirely."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one publication of weights changed.

    `changes` is None if the weights were replaced by something other than a step: then all of them may differ.
    """

    publication: int
    version: int
    changes: ChangedBySlab | None

    def begins(self, version: int) -> bool:
        """Return whether this is the step that made `version`."""
        return self.version == version and self.changes is not None

    @property
    def ids(self) -> int:
        ids = 0
        for row in self.changes or ():
            for change in row:
                if change is not None:
                    ids += change.ids
        return ids


class RecentChanges:
    """The most recent changes of a job's weights; older ones are forgotten when there is no room left.

    Publications of weights are numbered. The number says more than the job's version, which stays the same when weights
    are replaced without a step.
    """

    def __init__(self) -> None:
        self.publication = 0
        """The number of publications so far, which is that of the current weights."""
        self._entries: deque[_Entry] = deque(maxlen=MOST_ENTRIES)
        self._ids = 0

    def note(self, version: int, changes: ChangedBySlab | None, elements: Callable[[], int]) -> None:
        """Record a publication of weights, of a job that has `elements()` elements.

        `changes` is None if something other than a step replaced the weights.
        """
        self.publication += 1
        if len(self._entries) == MOST_ENTRIES:
            self._forget()
        entry = _Entry(self.publication, version, changes)
        self._entries.append(entry)
        self._ids += entry.ids
        if self._ids > FEW_IDS:
            most = max(FEW_IDS, elements() // 8)
            while self._ids > most:
                self._forget()

    def _forget(self) -> None:
        self._ids -= self._entries.popleft().ids

    def since(self, publication: int, extent: int, slab: int) -> list[ChangedElements] | None:
        """Return what changed in a slab since the weights of `publication`, or None if everything may have changed."""
        if publication < self.publication - len(self._entries):
            return None
        return _of_slab([entry for entry in self._entries if entry.publication > publication], extent, slab)

    def since_version(self, version: int, extent: int, slab: int) -> list[ChangedElements] | None:
        """Return what changed in a slab since any weights of `version`, or None if everything may have changed.

        Weights may have been replaced within a version, and such a replacement counts as a change. The answer is
        certain only if nothing has been forgotten, or if the step that made the version is still remembered.
        """
        complete = self.publication == len(self._entries) or any(entry.begins(version) for entry in self._entries)
        if not complete:
            return None
        replaced = [entry for entry in self._entries if entry.version == version and entry.changes is None]
        later = [entry for entry in self._entries if entry.version > version]
        return _of_slab([*replaced, *later], extent, slab)


def _of_slab(entries: Sequence[_Entry], extent: int, slab: int) -> list[ChangedElements] | None:
    changes = []
    for entry in entries:
        if entry.changes is None:
            return None
        # A step before an extent was added changed nothing in it.
        change = entry.changes[extent][slab] if extent < len(entry.changes) else ChangedElements()
        if change is None:
            return None
        changes.append(change)
    return changes
