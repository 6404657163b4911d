"""Where the elements of groups lie in memory: those of one dtype and one kind one behind the other, over all groups.

A frame addresses one group. Arithmetic does better with few large arrays than with many small ones: the groups that
were registered together are one *extent*, and an extent has one *slab* for each dtype and kind, so that a step is one
pass over a slab however many groups have a part in it. The kind of a group says which arithmetic is done on it: groups
of different kinds share no slab. A group that is added later is an extent of its own: nothing that is there moves.
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
class Place:
    """Where one segment of a group lies: elements from `start` on, parameters from `first` on, in a slab."""

    slab: int
    start: int
    first: int
    rank: int
    """How many groups come before it in the slab."""


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """The elements of an extent's parameters of one dtype and kind, and which parameters they belong to.

    `groups` are indices in the job's list, of the groups that have a part in it, and `parts` how many parameters
    each of them has there; `sizes` and `starts` are of all its parameters, in elements.
    """

    kind: str
    """Of the groups."""
    dtype: str
    """Of the parameters."""
    numbers: np.dtype[Any]
    """Of what lies here: the parameters' own, or what is computed with them."""
    count: int
    byte_offset: int
    groups: tuple[int, ...]
    parts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """For each parameter, how many groups come before its own."""
        return np.repeat(np.arange(len(self.parts)), self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """Groups that were registered together, from `first_group` of the job's list on."""

    first_group: int
    layouts: tuple[GroupLayout, ...]
    slabs: tuple[Slab, ...]
    places: tuple[tuple[Place, ...], ...]
    """By group of the extent and segment of the group."""
    bytes: int

    def shapes(self, slab: Slab) -> list[tuple[int, ...]]:
        """The shape of each parameter of a slab."""
        return [parameter.shape for parameter in self.parameters(slab)]

    def parameters(self, slab: Slab) -> list[ParameterInfo]:
        """The parameters of a slab in order."""
        return [self.layouts[group - self.first_group].parameters[member] for group, member in self.members(slab)]

    def members(self, slab: Slab) -> Iterator[tuple[int, int]]:
        """The parameters of a slab in order, as frames address them: the group, and the number in the group's list."""
        for group in slab.groups:
            for segment in self.layouts[group - self.first_group].segments:
                if segment.dtype == slab.dtype:
                    for member in segment.members:
                        yield group, member


def extent_of(layouts: Sequence[GroupLayout], first_group: int = 0, kinds: Sequence[str] = ()) -> Extent:
    """Lays groups out; without `kinds` all are of one."""
    kinds = kinds or [""] * len(layouts)
    slabs: list[Slab] = []
    places: list[list[Place]] = [[] for _ in layouts]
    for dtype, kind in product(DTYPES, dict.fromkeys(kinds)):
        parts: list[int] = []
        groups: list[int] = []
        sizes: list[int] = []
        start = 0
        for index, (layout, own) in enumerate(zip(layouts, kinds, strict=True)):
            for segment in layout.segments if own == kind else ():
                if segment.dtype == dtype:
                    places[index].append(Place(len(slabs), start, len(sizes), len(groups)))
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


def computed(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """Where gradients and state of the groups in `extents` lie: in the same order, in the dtype of the arithmetic."""
    return tuple(map(_computed, extents))


# Those of a job are asked for with every push, and known by which objects they are.
@lru_cache(maxsize=256)
def _computed(extent: Extent) -> Extent:
    numbers = [DTYPES[COMPUTED[slab.dtype]] for slab in extent.slabs]
    if all(slab.numbers == dtype for slab, dtype in zip(extent.slabs, numbers, strict=True)):
        return extent
    slabs = tuple(replace(slab, numbers=dtype) for slab, dtype in zip(extent.slabs, numbers, strict=True))
    return _placed(replace(extent, slabs=slabs))


def _placed(extent: Extent) -> Extent:
    """The extent with its slabs one behind the other in memory."""
    slabs = []
    end = 0
    for slab in extent.slabs:
        slabs.append(replace(slab, byte_offset=end))
        end += -(-slab.count * slab.numbers.itemsize // ALIGNMENT) * ALIGNMENT
    return replace(extent, slabs=tuple(slabs), bytes=end)
