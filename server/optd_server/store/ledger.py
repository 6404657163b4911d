"""Record which element ranges of groups have been written, and which parameters are therefore complete."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.store.coverage import Coverage
from optd_server.store.extents import Extent, SegmentPlace, Slab
from optd_wire.errors import DtypeMismatch, FrameOutOfRange, FrameOverlap, IncompleteParameter, InvalidRequest
from optd_wire.layout import GroupLayout, Segment
from optd_wire.values import ParameterInfo

Mask = npt.NDArray[np.bool_]
FEW = 64
_Group: TypeAlias = tuple[int, GroupLayout, tuple[SegmentPlace, ...], tuple[np.dtype[Any], ...]]
"""A group's extent, its layout, and where its segments lie, in which dtypes."""
Presence = list[list[Mask]]
"""Whether each parameter is present; indexed by extent, then by slab."""


def is_full(mask: Mask) -> bool:
    """Return whether every entry of a mask is set; faster than numpy for few entries, and asked for in every step."""
    return all(mask.tolist()) if len(mask) <= FEW else bool(mask.all())


def is_present(presence: Presence, extent: int, slab: int, parameter: int) -> bool:
    """Return whether a parameter is present. One of a group that was added after `presence` was computed is not."""
    return extent < len(presence) and bool(presence[extent][slab][parameter])


class Ledger:
    """The record of what has been written of one field of the groups in `extents`.

    `groups` are their names, and `first_group` is the index by which frames address the first of them.
    """

    def __init__(self, extents: tuple[Extent, ...], field: str, groups: Sequence[str], *, first_group: int = 0) -> None:
        self._extents = extents
        self._field = field
        self._groups = groups
        self._first_group = first_group
        self._coverage = [[Coverage() for _ in extent.slabs] for extent in extents]
        self._places = _directory(extents)

    def claim(self, group: int, offset: int, count: int, dtype: np.dtype[Any] | None) -> tuple[int, int, int]:
        """Mark a range as written; return the indices of its extent, of its slab and of its first element there.

        `dtype` is the dtype of the numbers, or None if they can be converted to the dtype of the slab. Raises
        `InvalidRequest`, `FrameOutOfRange`, `DtypeMismatch` or `FrameOverlap`, and then marks nothing.
        """
        index = group - self._first_group
        if not 0 <= index < len(self._places):
            groups = f"[{self._first_group}, {self._first_group + len(self._places)})"
            raise InvalidRequest(problem=f"a frame addresses group {group}; it must be in {groups}")
        extent, layout, places, kept = self._places[index]
        number = _segment_at(layout, kept, group, offset, offset + count, dtype)
        segment, place = layout.segments[number], places[number]
        if dtype is not None and dtype != kept[number]:
            raise DtypeMismatch(
                what=self._field,
                parameter=_parameter_at(layout, segment, offset).name,
                expected=kept[number].name,
                got=dtype.name,
            )
        start = place.start + offset - segment.offset
        # Leaves one unused position after each group, so that ranges of two groups never join.
        twice = self._coverage[extent][place.slab].add(start + place.rank, start + place.rank + count)
        if twice is not None:
            element = twice - place.rank - place.start + segment.offset
            raise FrameOverlap(
                parameter=_parameter_at(layout, segment, element).name,
                field=self._field,
                element=element,
                group=self._groups[index],
            )
        return extent, place.slab, start

    def presence(self) -> Presence:
        """Return which parameters are complete; raise `IncompleteParameter` if one was written only in part."""
        return [
            [self._presence_in(extent, slab, coverage) for slab, coverage in zip(extent.slabs, row, strict=True)]
            for extent, row in zip(self._extents, self._coverage, strict=True)
        ]

    def _presence_in(self, extent: Extent, slab: Slab, coverage: Coverage) -> Mask:
        if len(slab.groups) == 1 and coverage.is_just(0, slab.count):
            return np.ones(len(slab.sizes), np.bool_)
        starts = slab.starts + slab.ranks
        whole, partial = coverage.of(starts, slab.sizes)
        if partial.any():
            worst = int(partial.argmax())
            start, size = int(starts[worst]), int(slab.sizes[worst])
            raise IncompleteParameter(
                what=self._field,
                parameter=owner_of(extent, slab, int(slab.starts[worst]))[0].name,
                got=coverage.elements(start, start + size),
                size=size,
            )
        return whole

    def require_all(self) -> None:
        """Raise `IncompleteParameter` for the first parameter that is not complete."""
        for extent, by_slab in zip(self._extents, self.presence(), strict=True):
            for slab, whole in zip(extent.slabs, by_slab, strict=True):
                # An empty parameter has no element that could be missing.
                missing = np.flatnonzero(~whole & (slab.sizes > 0))
                if len(missing):
                    first = int(missing[0])
                    name = owner_of(extent, slab, int(slab.starts[first]))[0].name
                    raise IncompleteParameter(what=self._field, parameter=name, got=0, size=int(slab.sizes[first]))

    def parameters(self) -> set[tuple[int, int]]:
        """Return the complete parameters, each as (group's index, index in the group's list)."""
        whole: set[tuple[int, int]] = set()
        for extent, by_slab in zip(self._extents, self.presence(), strict=True):
            for slab, present in zip(extent.slabs, by_slab, strict=True):
                members = zip(extent.members(slab), present.tolist(), strict=True)
                whole.update(member for member, there in members if there)
        return whole

    def written(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield each written range as (extent, slab, first element, end)."""
        for number, extent in enumerate(self._extents):
            for index, slab in enumerate(extent.slabs):
                elements = np.add.reduceat(slab.sizes, np.cumsum(slab.parameter_counts) - slab.parameter_counts)
                ends = np.cumsum(elements + 1)
                for start, stop in self._coverage[number][index].ranges:
                    rank = int(np.searchsorted(ends, start, side="right"))
                    yield number, index, start - rank, stop - rank


# Every push of a job looks up the same groups.
@lru_cache(maxsize=256)
def _directory(extents: tuple[Extent, ...]) -> list[_Group]:
    """Return what a claim needs to know of each group."""
    return [
        (number, layout, places, tuple(extent.slabs[place.slab].element_dtype for place in places))
        for number, extent in enumerate(extents)
        for layout, places in zip(extent.layouts, extent.places, strict=True)
    ]


def _segment_at(
    layout: GroupLayout,
    kept: Sequence[np.dtype[Any]],
    group: int,
    start: int,
    stop: int,
    dtype: np.dtype[Any] | None,
) -> int:
    """Return the index of the segment that holds a range; raise `FrameOutOfRange` if none does.

    `kept` are the dtypes in which the segments are held. An empty range on the border of two segments belongs to the
    one of its dtype.
    """
    if len(layout.segments) == 1 and layout.segments[0].offset <= start and stop <= layout.segments[0].count:
        return 0
    holding = [
        index
        for index, segment in enumerate(layout.segments)
        if segment.offset <= start and stop <= segment.offset + segment.count
    ]
    if not holding:
        ranges = ", ".join(f"[{s.offset}, {s.offset + s.count}) {s.dtype}" for s in layout.segments)
        raise FrameOutOfRange(group=group, start=start, stop=stop, ranges=ranges)
    # A comparison of a dtype with None would take None for float64.
    return next((i for i in holding if dtype is not None and kept[i] == dtype), holding[0])


def _parameter_at(layout: GroupLayout, segment: Segment, offset: int) -> ParameterInfo:
    """Return the parameter that holds element `offset` of the group, or the last one before that element."""
    members = [layout.parameters[index] for index in segment.members]
    holding = [parameter for parameter in members if parameter.offset <= offset and parameter.size]
    return holding[-1] if holding else members[0]


def owner_of(extent: Extent, slab: Slab, element: int) -> tuple[ParameterInfo, int]:
    """Return the parameter that holds an element of a slab, and the index of the element in that parameter."""
    index = int(np.searchsorted(slab.starts + slab.sizes, element, side="right"))
    position = int(np.searchsorted(np.cumsum(slab.parameter_counts), index, side="right"))
    layout = extent.layouts[slab.groups[position] - extent.first_group]
    segment = next(segment for segment in layout.segments if segment.dtype == slab.dtype)
    place = index - int(slab.parameter_counts[:position].sum())
    return layout.parameters[segment.members[place]], element - int(slab.starts[index])
