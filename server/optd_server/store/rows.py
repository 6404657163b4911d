"""Row-sparse gradients on their way into a step: rows of parameters, added up by their numbers as they arrive."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent
from optd_server.store.flat import Array
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.errors import DtypeMismatch, InvalidRequest, NonfiniteGradient
from optd_wire.rows import RowFrame
from optd_wire.values import GRADIENT

Ids = npt.NDArray[np.int64]

# Up to so many rows of one number are added one after the other for all numbers at once.
_RANKS = 16
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a parameter lies whose rows are addressed: its extent, slab and number there, and its elements.

    `group` and `member` are how it is addressed: the group's index, and the parameter's in the group's list.
    """

    group: int
    member: int
    extent: int
    slab: int
    parameter: int
    name: str
    dtype: str
    start: int
    rows: int
    columns: int

    def table(self, slab: Array) -> Array:
        """The parameter's elements in its slab, row by row."""
        return slab[self.start : self.start + self.rows * self.columns].reshape(self.rows, self.columns)

    def element(self, ids: Ids, number: int) -> int:
        """Which of the parameter's elements one of the numbers of the rows `ids` is."""
        row, column = divmod(number, self.columns)
        return int(ids[row]) * self.columns + column


Accept = Callable[[RowPlace, Ids, Array], None]
"""Takes the numbers of a frame of rows, shape (ids, columns), before they are added up; it may change them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a parameter: ascending ids, each once, and the elements of each."""

    place: RowPlace
    ids: Ids
    values: Array

    def add_to(self, slab: Array) -> None:
        """Adds them to the parameter's elements in a slab."""
        table = self.place.table(slab)
        # What overflows here overflows in torch, too.
        with np.errstate(all="ignore"):
            table[self.ids] += self.values


class RowSums:
    """Rows of any number of frames, those of one number added up in the order in which they came.

    Keeps no more than about two whole gradients of the parameters that it has rows of, and their ids; adding them up
    takes another one for a moment.
    Not thread-safe: one frame at a time.
    """

    def __init__(self, extents: tuple[Extent, ...]) -> None:
        self._extents = extents
        self._parts: dict[RowPlace, list[tuple[Ids, Array]]] = {}
        self._waiting: dict[RowPlace, int] = {}

    def add(self, frame: RowFrame, accept: Accept | None = None) -> RowPlace:
        """Adds a frame; returns which parameter it is of. Raises what is wrong with it, and adds nothing then.

        `accept` makes its numbers ready to be added up, or refuses them; without it all must be finite.
        """
        place = place_of(self._extents, frame.group, frame.parameter)
        frame.check(place.name, place.rows, place.columns)
        dtype = DTYPES[COMPUTED[place.dtype]]
        if not frame.encoding.converts and not frame.encoding.keeps(dtype):
            got = frame.encoding.name
            raise DtypeMismatch(what=GRADIENT, parameter=place.name, expected=dtype.name, got=got)
        values = np.empty((frame.count, place.columns), dtype)
        frame.decode_into(values)
        ids = frame.ids.astype(np.int64)
        (accept or check_finite)(place, ids, values)
        self._parts.setdefault(place, []).append((ids, values))
        self._waiting[place] = self._waiting.get(place, 0) + frame.count
        if self._waiting[place] > place.rows:
            self._merge(place)
        return place

    def bytes_with(self, frames: Iterable[RowFrame]) -> int:
        """How many bytes it would hold with these frames; raises `InvalidRequest` for one of no parameter."""
        held = sum(ids.nbytes + values.nbytes for parts in self._parts.values() for ids, values in parts)
        for frame in frames:
            place = place_of(self._extents, frame.group, frame.parameter)
            held += frame.ids.size * (_ID_BYTES + place.columns * DTYPES[COMPUTED[place.dtype]].itemsize)
        return held

    @property
    def size(self) -> int:
        """How many elements all that it holds has."""
        return sum(values.size for parts in self._parts.values() for _, values in parts)

    def _merge(self, place: RowPlace) -> Rows:
        parts = self._parts[place]
        if len(parts) > 1:
            ids, values = np.concatenate([ids for ids, _ in parts]), np.concatenate([values for _, values in parts])
            parts.clear()  # before there is a third copy
        else:
            ids, values = parts[0]
        merged = merge(ids, values)
        self._parts[place], self._waiting[place] = [merged], 0
        return Rows(place, *merged)

    def sums(self) -> Iterator[Rows]:
        """The rows of each parameter that has been sent any, or has been said to have none."""
        for place in self._parts:
            yield self._merge(place)


def merge(ids: Ids, values: Array) -> tuple[Ids, Array]:
    """Adds up the rows of each id, from first to last; the ids that are returned ascend, each once."""
    if (ids[1:] > ids[:-1]).all():
        return ids, values
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    counts = np.diff(np.append(first, len(ids)))
    sums = values[order[first]]
    # What overflows here overflows in torch, too.
    with np.errstate(all="ignore"):
        for rank in range(1, min(int(counts.max()), _RANKS)):
            more = np.flatnonzero(counts > rank)
            sums[more] += values[order[first[more] + rank]]
        if counts.max() > _RANKS:
            owners = np.repeat(np.arange(len(first)), counts)
            late = np.arange(len(ids)) - first[owners] >= _RANKS
            np.add.at(sums, owners[late], values[order[late]])
    return ids[first], sums


def check_finite(place: RowPlace, ids: Ids, values: Array) -> None:
    """Raises `NonfiniteGradient` for rows with a NaN or an infinity."""
    finite = np.isfinite(values)
    if not finite.all():
        first = int(finite.argmin())
        raise NonfiniteGradient(parameter=place.name, value=values.flat[first], index=place.element(ids, first))


def place_of(extents: tuple[Extent, ...], group: int, parameter: int) -> RowPlace:
    """Where the rows of a parameter lie; raises `InvalidRequest` for one that is not there, or has no rows."""
    places = _places(extents)
    if not 0 <= group < len(places):
        raise InvalidRequest(problem=f"a row frame addresses group {group}; it must be in [0, {len(places)})")
    if not 0 <= parameter < len(places[group]):
        bound = f"[0, {len(places[group])})"
        raise InvalidRequest(
            problem=f"a row frame addresses parameter {parameter} of group {group}; it must be in {bound}"
        )
    place = places[group][parameter]
    if isinstance(place, str):
        raise InvalidRequest(problem=f"parameter {place!r} has no rows, as its shape is ()")
    return place


# A job looks its parameters up anew with every push.
@lru_cache(maxsize=256)
def _places(extents: tuple[Extent, ...]) -> list[list[RowPlace | str]]:
    """By group and parameter; the name alone of one without a dimension."""
    found: list[list[RowPlace | str]] = []
    for number, extent in enumerate(extents):
        for layout, places in zip(extent.layouts, extent.places, strict=True):
            row: list[RowPlace | str] = [parameter.name for parameter in layout.parameters]
            for segment, place in zip(layout.segments, places, strict=True):
                for rank, member in enumerate(segment.members):
                    info = layout.parameters[member]
                    if info.shape:
                        start = place.start + info.offset - segment.offset
                        columns = info.size // info.shape[0] if info.size else 0
                        row[member] = RowPlace(
                            len(found),
                            member,
                            number,
                            place.slab,
                            place.first + rank,
                            info.name,
                            info.dtype,
                            start,
                            info.shape[0],
                            columns,
                        )
            found.append(row)
    return found


def densify(rows: Sequence[Rows], slabs: list[list[Array]]) -> None:
    """Writes rows into their parameters' elements, with zeros in all others."""
    for each in rows:
        slab = slabs[each.place.extent][each.place.slab]
        each.place.table(slab)[:] = 0
        each.place.table(slab)[each.ids] = each.values
