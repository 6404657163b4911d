"""Row-sparse gradients on their way into a step: rows of parameters, added up by their numbers as they arrive."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent
from optd_server.store.flat import Array
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.errors import DtypeMismatch, InvalidRequest, NonfiniteGradient
from optd_wire.row_frames import RowFrame, table_shape
from optd_wire.values import GRADIENT

Ids = npt.NDArray[np.int64]

# Up to so many rows of one number are added one after the other for all numbers at once.
_RANKS = 16
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a parameter lies whose rows are addressed: its extent, slab and number there, and its elements.

    `group` and `member` are how it is addressed: the group's index, and the parameter's in the group's list.
    `sparse_dims` leading dimensions of its `shape` count the rows. Two places of one parameter may differ in that:
    `whole` is the same for both, and `finer` the one with the shorter rows.
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
    shape: tuple[int, ...]
    sparse_dims: int = 1

    def with_dims(self, sparse_dims: int) -> "RowPlace":
        """The same parameter with its rows counted over other dimensions; raises `InvalidRequest`."""
        if sparse_dims == self.sparse_dims:
            return self
        if sparse_dims > len(self.shape):
            raise InvalidRequest(
                problem=f"a row frame counts rows of parameter {self.name!r} over {sparse_dims} dimensions; its shape "
                f"is {self.shape}, so sparse_dims must be at most {len(self.shape)}"
            )
        rows, columns = table_shape(self.shape, sparse_dims)
        return replace(self, rows=rows, columns=columns, sparse_dims=sparse_dims)

    @property
    def whole(self) -> "RowPlace":
        """The parameter, however its rows are counted."""
        return self.with_dims(1)

    def finer(self, other: "RowPlace") -> "RowPlace":
        """Whichever of two places of one parameter has the shorter rows."""
        return self if self.sparse_dims >= other.sparse_dims else other

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

    def at(self, place: RowPlace) -> "Rows":
        """The same elements as the shorter rows of a finer place."""
        return self if place == self.place else Rows(place, *_split(self.place, place, self.ids, self.values))

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
        self._finest: dict[RowPlace, RowPlace] = {}
        """By `whole` place: the one with the shortest rows so far, which all rows of the parameter are split into."""

    def add(self, frame: RowFrame, accept: Accept | None = None) -> RowPlace:
        """Adds a frame; returns its parameter's `whole` place. Raises what is wrong with it, and adds nothing then.

        `accept` makes its numbers ready to be added up, or refuses them; without it all must be finite.
        """
        place = _place_of(self._extents, frame)
        frame.check(place.name, place.rows, place.columns)
        dtype = DTYPES[COMPUTED[place.dtype]]
        if not frame.encoding.converts and not frame.encoding.keeps(dtype):
            got = frame.encoding.name
            raise DtypeMismatch(what=GRADIENT, parameter=place.name, expected=dtype.name, got=got)
        values = np.empty((frame.count, place.columns), dtype)
        frame.decode_into(values)
        ids = frame.ids.astype(np.int64)
        (accept or check_finite)(place, ids, values)
        finest = self._refine(place)
        ids, values = _split(place, finest, ids, values)
        self._parts.setdefault(finest, []).append((ids, values))
        self._waiting[finest] = self._waiting.get(finest, 0) + len(ids)
        if self._waiting[finest] > finest.rows:
            self._merge(finest)
        return place.whole

    def _refine(self, place: RowPlace) -> RowPlace:
        """The finest place of a parameter from now on; what has been added before is split where it is coarser."""
        known = self._finest.get(place.whole, place)
        finest = self._finest[place.whole] = known.finer(place)
        if known != finest:
            self._parts[finest] = [_split(known, finest, *part) for part in self._parts.pop(known)]
            self._waiting[finest] = sum(len(ids) for ids, _ in self._parts[finest])
            del self._waiting[known]
        return finest

    def bytes_with(self, frames: Iterable[RowFrame]) -> int:
        """How many bytes it would hold with these frames; raises `InvalidRequest` for one of no parameter."""
        finest = dict(self._finest)
        elements = {place.whole: sum(values.size for _, values in parts) for place, parts in self._parts.items()}
        for frame in frames:
            place = _place_of(self._extents, frame)
            finest[place.whole] = finest.get(place.whole, place).finer(place)
            elements[place.whole] = elements.get(place.whole, 0) + frame.ids.size * place.columns
        return sum(
            count * DTYPES[COMPUTED[whole.dtype]].itemsize + _ID_BYTES * -(-count // max(1, finest[whole].columns))
            for whole, count in elements.items()
        )

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


def _place_of(extents: tuple[Extent, ...], frame: RowFrame) -> RowPlace:
    return place_of(extents, frame.group, frame.parameter).with_dims(max(1, frame.sparse_dims))


def _split(place: RowPlace, finer: RowPlace, ids: Ids, values: Array) -> tuple[Ids, Array]:
    """Rows of one place as the shorter rows of a finer one; ids that ascend go on ascending."""
    if place == finer:
        return ids, values
    parts = finer.rows // max(1, place.rows)
    numbers = ids[:, None] * parts + np.arange(parts)
    return numbers.reshape(-1), values.reshape(numbers.size, finer.columns)


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
                        rows, columns = table_shape(info.shape, 1)
                        row[member] = RowPlace(
                            len(found),
                            member,
                            number,
                            place.slab,
                            place.first + rank,
                            info.name,
                            info.dtype,
                            start,
                            rows,
                            columns,
                            tuple(info.shape),
                        )
            found.append(row)
    return found


def densify(rows: Sequence[Rows], slabs: list[list[Array]]) -> None:
    """Writes rows into their parameters' elements, with zeros in all others."""
    for each in rows:
        slab = slabs[each.place.extent][each.place.slab]
        each.place.table(slab)[:] = 0
        each.place.table(slab)[each.ids] = each.values
