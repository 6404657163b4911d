"""The elements of a job's weights that have changed since a version, as ranges and rows that frames can address."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from optd_server.engine.job import Job
from optd_server.store.extents import Extent
from optd_server.store.flat import Array
from optd_server.store.recent_changes import ChangedElements
from optd_server.store.rows import Ids, RowPlace
from optd_server.store.versions import Snapshot
from optd_wire.values import FlatRange


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """Rows of one parameter that have changed, by ascending id."""

    place: RowPlace
    ids: Ids

    def of(self, snapshot: Snapshot, ids: Ids) -> Array:
        """Returns the elements of the rows `ids`, row by row."""
        slab = snapshot.weights.buffers.slabs[self.place.extent][self.place.slab]
        return self.place.table(slab)[ids]


@dataclass(frozen=True, slots=True)
class Changed:
    """The changed elements: ranges of whole parameters, and rows of others."""

    ranges: tuple[FlatRange, ...]
    rows: tuple[ChangedRows, ...]


def changed_since(job: Job, version: int) -> Changed:
    """Returns the elements that may have changed since `version`: all of a slab whose recent changes are forgotten."""
    recent, extents = job.snapshots.recent_changes, job.state.groups.extents
    ranges: list[FlatRange] = []
    rows: list[ChangedRows] = []
    for number, extent in enumerate(extents):
        for index, slab in enumerate(extent.slabs):
            changes = recent.since_version(version, number, index)
            if changes is None:
                ranges += _addressed(extent, index, 0, slab.count)
                continue
            for start, stop in _joined([each for change in changes for each in change.ranges]):
                ranges += _addressed(extent, index, start, stop)
            rows += _rows(changes)
    return Changed(tuple(ranges), tuple(rows))


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _addressed(extent: Extent, slab: int, start: int, stop: int) -> Iterator[FlatRange]:
    """Yields a range of a slab as flat ranges of its groups."""
    for group, (layout, places) in enumerate(zip(extent.layouts, extent.places, strict=True), extent.first_group):
        for segment, place in zip(layout.segments, places, strict=True):
            low, high = max(start, place.start), min(stop, place.start + segment.count)
            if place.slab == slab and low < high:
                yield FlatRange(group, segment.offset + low - place.start, high - low)


def _rows(changes: Sequence[ChangedElements]) -> list[ChangedRows]:
    found: dict[RowPlace, list[Ids]] = {}
    for change in changes:
        for place, ids in change.rows:
            found.setdefault(place, []).append(ids)
    return [
        ChangedRows(place, parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts)))
        for place, parts in found.items()
    ]
