"""Which element ranges of groups have been written, claim by claim, and which parameters that makes whole."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.store.coverage import Coverage
from optd_server.store.extents import Extent, Place, Slab
from optd_wire.errors import DtypeMismatch, FrameOutOfRange, FrameOverlap, IncompleteParameter, InvalidRequest
from optd_wire.layout import GroupLayout, Segment
from optd_wire.values import ParameterInfo

Mask = npt.NDArray[np.bool_]
Presence = list[list[Mask]]
"""By extent and slab: for each parameter, whether it is there."""


class Ledger:
    """The account of one field of the groups in `extents`.

    `groups` are their names, and `first_group` is the index by which the first of them is addressed.
    """

    def __init__(self, extents: tuple[Extent, ...], field: str, groups: Sequence[str], *, first_group: int = 0) -> None:
        self._extents = extents
        self._field = field
        self._groups = groups
        self._first_group = first_group
        self._coverage = [[Coverage() for _ in extent.slabs] for extent in extents]
        self._places = _directory(extents)

    def claim(self, group: int, offset: int, count: int, dtype: np.dtype[Any] | None) -> tuple[int, int, int]:
        """Counts a range as written; returns the extent and slab that it lies in, and its first element there.

        `dtype` is that of the numbers, None where they become whatever is kept. Raises `InvalidRequest`,
        `FrameOutOfRange`, `DtypeMismatch` or `FrameOverlap`, and counts nothing then.
        """
        index = group - self._first_group
        if not 0 <= index < len(self._places):
            groups = f"[{self._first_group}, {self._first_group + len(self._places)})"
            raise InvalidRequest(problem=f"a frame addresses group {group}; it must be in {groups}")
        extent, layout, places = self._places[index]
        slabs = self._extents[extent].slabs
        kept = [slabs[place.slab].numbers for place in places]
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
        # One place more than its elements for each group: so ranges of two groups never join.
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
        """Which parameters have been written whole; raises `IncompleteParameter` where one was written in part."""
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
        """Raises `IncompleteParameter` for the first parameter that has not been written whole."""
        for extent, by_slab in zip(self._extents, self.presence(), strict=True):
            for slab, whole in zip(extent.slabs, by_slab, strict=True):
                # There is no element of an empty parameter that could be missing.
                missing = np.flatnonzero(~whole & (slab.sizes > 0))
                if len(missing):
                    first = int(missing[0])
                    name = owner_of(extent, slab, int(slab.starts[first]))[0].name
                    raise IncompleteParameter(what=self._field, parameter=name, got=0, size=int(slab.sizes[first]))

    def parameters(self) -> set[tuple[int, int]]:
        """The parameters that have been written whole: the group's index, and the parameter's in the group's list."""
        whole: set[tuple[int, int]] = set()
        for extent, by_slab in zip(self._extents, self.presence(), strict=True):
            for slab, present in zip(extent.slabs, by_slab, strict=True):
                members = zip(extent.members(slab), present.tolist(), strict=True)
                whole.update(member for member, there in members if there)
        return whole

    def written(self) -> Iterator[tuple[int, int, int, int]]:
        """The ranges that have been written: extent, slab, and elements from where to where."""
        for number, extent in enumerate(self._extents):
            for index, slab in enumerate(extent.slabs):
                elements = np.add.reduceat(slab.sizes, np.cumsum(slab.parts) - slab.parts)
                ends = np.cumsum(elements + 1)
                for start, stop in self._coverage[number][index].ranges:
                    rank = int(np.searchsorted(ends, start, side="right"))
                    yield number, index, start - rank, stop - rank


# A job looks its groups up anew with every push.
@lru_cache(maxsize=256)
def _directory(extents: tuple[Extent, ...]) -> list[tuple[int, GroupLayout, tuple[Place, ...]]]:
    """By group: its extent, its layout, and where it lies."""
    return [
        (number, layout, places)
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
    """The index of the segment that a range lies in; raises `FrameOutOfRange`. `kept` are the segments' dtypes.

    A range without elements may lie on the border of two segments; it belongs to the one of its dtype.
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
    # numpy takes None for float64 where it compares dtypes.
    return next((i for i in holding if dtype is not None and kept[i] == dtype), holding[0])


def _parameter_at(layout: GroupLayout, segment: Segment, offset: int) -> ParameterInfo:
    """The parameter that element `offset` of the group belongs to, or the last one before it."""
    members = [layout.parameters[index] for index in segment.members]
    holding = [parameter for parameter in members if parameter.offset <= offset and parameter.size]
    return holding[-1] if holding else members[0]


def owner_of(extent: Extent, slab: Slab, element: int) -> tuple[ParameterInfo, int]:
    """The parameter that an element of a slab belongs to, and which of its elements it is."""
    index = int(np.searchsorted(slab.starts + slab.sizes, element, side="right"))
    position = int(np.searchsorted(np.cumsum(slab.parts), index, side="right"))
    layout = extent.layouts[slab.groups[position] - extent.first_group]
    segment = next(segment for segment in layout.segments if segment.dtype == slab.dtype)
    place = index - int(slab.parts[:position].sum())
    return layout.parameters[segment.members[place]], element - int(slab.starts[index])
