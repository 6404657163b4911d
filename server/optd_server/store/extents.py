"""Lay groups out in memory: elements of one dtype and one kind lie next to each other, across groups.

A frame addresses one group, but arithmetic is faster on a few large arrays than on many small ones. So the groups that
were registered together form one *extent*, and an extent has one *slab* for each dtype and kind. A step is then one
pass over each slab, however many groups share it. The kind of a group says which arithmetic is done on it; groups of
different kinds never share a slab. A group that is added later is an extent of its own, so nothing moves.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.store.memory import ALIGNMENT
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.layout import GroupLayout
from optd_wire.values import ParameterInfo


@dataclass(frozen=True, slots=True)
class SegmentPlace:
    """Where one segment of a group lies in its extent."""

    slab: int
    """Index of its slab in the extent."""
    start: int
    """Index of its first element in the slab."""
    first: int
    """Index of its first parameter in the slab."""
    rank: int
    """The number of groups that come before it in the slab."""


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """One flat array of an extent: the parameters of one dtype and kind, and where each of them lies."""

    kind: str
    """The kind of its groups."""
    dtype: str
    """The dtype of its parameters."""
    element_dtype: np.dtype[Any]
    """The dtype of its elements: that of the parameters for weights, that of the arithmetic for gradients and state."""
    count: int
    """The number of its elements."""
    byte_offset: int
    """Where it begins in the extent's region, in bytes."""
    groups: tuple[int, ...]
    """Its groups, as indices in the job's list."""
    parameter_counts: npt.NDArray[np.int64]
    """For each of its groups, the number of parameters."""
    sizes: npt.NDArray[np.int64]
    """For each of its parameters, the number of elements."""
    starts: npt.NDArray[np.int64]
    """For each of its parameters, the index of the first element."""

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """For each parameter, the number of groups that come before its own."""
        return np.repeat(np.arange(len(self.parameter_counts)), self.parameter_counts)


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """The layout of groups that were registered together."""

    first_group: int
    """The index of its first group in the job's list; the others follow."""
    layouts: tuple[GroupLayout, ...]
    slabs: tuple[Slab, ...]
    places: tuple[tuple[SegmentPlace, ...], ...]
    """Indexed by group of the extent, then by segment of the group."""
    bytes: int
    """The size of its region."""

    def shapes(self, slab: Slab) -> list[tuple[int, ...]]:
        """Return the shape of each parameter of a slab."""
        return [parameter.shape for parameter in self.parameters(slab)]

    def parameters(self, slab: Slab) -> list[ParameterInfo]:
        """Return the parameters of a slab in order."""
        return [self.layouts[group - self.first_group].parameters[member] for group, member in self.members(slab)]

    def members(self, slab: Slab) -> Iterator[tuple[int, int]]:
        """Yield the parameters of a slab in order, as frames address them: (group, index in the group's list)."""
        for group in slab.groups:
            for segment in self.layouts[group - self.first_group].segments:
                if segment.dtype == slab.dtype:
                    for member in segment.members:
                        yield group, member


def extent_of(layouts: Sequence[GroupLayout], first_group: int = 0, kinds: Sequence[str] = ()) -> Extent:
    """Lay groups out as one extent; without `kinds` they are all of the same kind."""
    kinds = kinds or [""] * len(layouts)
    slabs: list[Slab] = []
    places: list[list[SegmentPlace]] = [[] for _ in layouts]
    for dtype, kind in product(DTYPES, dict.fromkeys(kinds)):
        parts: list[int] = []
        groups: list[int] = []
        sizes: list[int] = []
        start = 0
        for index, (layout, own) in enumerate(zip(layouts, kinds, strict=True)):
            for segment in layout.segments if own == kind else ():
                if segment.dtype == dtype:
                    places[index].append(SegmentPlace(len(slabs), start, len(sizes), len(groups)))
                    groups.append(first_group + index)
                    parts.append(len(segment.members))
                    sizes.extend(layout.parameters[member].size for member in segment.members)
                    start += segment.count
        if groups:
            array = np.asarray(sizes, np.int64)
            counts = np.asarray(parts, np.int64)
            starts = np.cumsum(array) - array
            slabs.append(Slab(kind, dtype, DTYPES[dtype], start, 0, tuple(groups), counts, array, starts))
    return _placed(Extent(first_group, tuple(layouts), tuple(slabs), tuple(map(tuple, places)), 0))


def in_compute_dtype(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """Lay out gradients and state of the groups in `extents`: in the same order, in the dtype of the arithmetic."""
    return tuple(map(_computed, extents))


# Every push asks for the layout of its job, whose extents are always the same objects.
@lru_cache(maxsize=256)
def _computed(extent: Extent) -> Extent:
    dtypes = [DTYPES[COMPUTED[slab.dtype]] for slab in extent.slabs]
    if all(slab.element_dtype == dtype for slab, dtype in zip(extent.slabs, dtypes, strict=True)):
        return extent
    slabs = tuple(replace(slab, element_dtype=dtype) for slab, dtype in zip(extent.slabs, dtypes, strict=True))
    return _placed(replace(extent, slabs=slabs))


def _placed(extent: Extent) -> Extent:
    """Return the extent with its slabs one after the other in memory, each aligned."""
    slabs = []
    end = 0
    for slab in extent.slabs:
        slabs.append(replace(slab, byte_offset=end))
        end += -(-slab.count * slab.element_dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return replace(extent, slabs=tuple(slabs), bytes=end)
