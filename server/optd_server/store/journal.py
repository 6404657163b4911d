"""What the last versions of the weights have changed, so that older weights can be brought up to date by that alone."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from optd_server.store.flat import Array
from optd_server.store.rows import Ids, RowPlace

MOST_ENTRIES = 64
FEW_IDS = 1 << 20
"""So many ids are kept whatever a job's size."""
FRACTION = 4
"""Where more than one in so many elements of a slab has changed, copying all of it is no slower."""


@dataclass(frozen=True, slots=True)
class Change:
    """Elements of one slab that have changed."""

    ranges: tuple[tuple[int, int], ...] = ()
    rows: tuple[tuple[RowPlace, Ids], ...] = ()
    """Some rows of parameters; ids ascend."""

    @property
    def elements(self) -> int:
        """How many they are."""
        ranges = sum(stop - start for start, stop in self.ranges)
        return ranges + sum(len(ids) * place.columns for place, ids in self.rows)

    @property
    def ids(self) -> int:
        """How many numbers of rows it keeps."""
        return sum(len(ids) for _, ids in self.rows)

    def copy(self, target: Array, source: Array) -> None:
        """Copies these elements from one slab to another."""
        for start, stop in self.ranges:
            target[start:stop] = source[start:stop]
        for place, ids in self.rows:
            place.table(target)[ids] = place.table(source)[ids]


Changes = list[list[Change | None]]
"""By extent and slab; None for a slab of which most has changed."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What led to the weights with a number; `changes` None: everything, by no step."""

    number: int
    version: int
    changes: Changes | None

    def begins(self, version: int) -> bool:
        """Whether it is the step that led to a version."""
        return self.version == version and self.changes is not None

    @property
    def ids(self) -> int:
        return sum(change.ids for row in self.changes or () for change in row if change is not None)


class Journal:
    """The changes that led to the current weights, as far back as there is room for.

    Weights are numbered by how many were published before them, and have the version of the job, which stays the same
    where they are replaced.
    """

    def __init__(self) -> None:
        self.number = 0
        """That of the current weights."""
        self._entries: deque[_Entry] = deque(maxlen=MOST_ENTRIES)
        self._ids = 0

    def note(self, version: int, changes: Changes | None, elements: int) -> None:
        """New weights have been published, of a job with so many elements; `changes` None: by no step."""
        self.number += 1
        if len(self._entries) == MOST_ENTRIES:
            self._forget()
        entry = _Entry(self.number, version, changes)
        self._entries.append(entry)
        self._ids += entry.ids
        while self._ids > max(FEW_IDS, elements // 8):
            self._forget()

    def _forget(self) -> None:
        self._ids -= self._entries.popleft().ids

    def since(self, number: int, extent: int, slab: int) -> list[Change] | None:
        """What of a slab has changed since the weights with a number; None where all may have."""
        if number < self.number - len(self._entries):
            return None
        return _of_slab([entry for entry in self._entries if entry.number > number], extent, slab)

    def since_version(self, version: int, extent: int, slab: int) -> list[Change] | None:
        """What of a slab has changed since any weights of a version; None where all may have.

        Those that the version began with may have been replaced since. That is known where the step that led to it is,
        or where all is.
        """
        complete = self.number == len(self._entries) or any(entry.begins(version) for entry in self._entries)
        if not complete:
            return None
        replaced = [entry for entry in self._entries if entry.version == version and entry.changes is None]
        later = [entry for entry in self._entries if entry.version > version]
        return _of_slab([*replaced, *later], extent, slab)


def _of_slab(entries: Sequence[_Entry], extent: int, slab: int) -> list[Change] | None:
    changes = []
    for entry in entries:
        # Of groups that were added later it knows nothing, nor did it change anything there.
        if entry.changes is None:
            return None
        change = entry.changes[extent][slab] if extent < len(entry.changes) else Change()
        if change is None:
            return None
        changes.append(change)
    return changes
