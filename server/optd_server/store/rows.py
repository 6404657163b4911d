"""Row-sparse gradients on their way into a step: rows of parameters, summed by row id as they arrive."""

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

# The first so many rows of each id are added one after the other, for all ids at once; the rest by `np.add.at`.
_RANKS = 16
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class RowPlace:
    """A parameter as a table of rows, and where the table lies.

    The first `sparse_dims` dimensions of `shape` count the rows. Two places of one parameter may differ in that number:
    `whole` is the same for both, and `finer` is the one with the shorter rows.
    """

    group: int
    """The index of its group in the job's list."""
    member: int
    """Its index in the group's list."""
    extent: int
    slab: int
    parameter: int
    """Its index in the slab."""
    name: str
    dtype: str
    start: int
    """The index of its first element in the slab."""
    rows: int
    columns: int
    shape: tuple[int, ...]
    sparse_dims: int = 1

    def with_dims(self, sparse_dims: int) -> "RowPlace":
        """Return the parameter with another `sparse_dims`; raise `InvalidRequest` if its shape has fewer dimensions."""
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
        """The same parameter with `sparse_dims` 1: equal for all places of one parameter."""
        return self.with_dims(1)

    def finer(self, other: "RowPlace") -> "RowPlace":
        """Return whichever of two places of one parameter has the shorter rows."""
        return self if self.sparse_dims >= other.sparse_dims else other

    def table(self, slab: Array) -> Array:
        """Return a view of the parameter in its slab, shape (rows, columns)."""
        return slab[self.start : self.start + self.rows * self.columns].reshape(self.rows, self.columns)

    def element(self, ids: Ids, number: int) -> int:
        """Return the index in the parameter of element `number` of an array that holds the rows `ids`."""
        row, column = divmod(number, self.columns)
        return int(ids[row]) * self.columns + column


Accept = Callable[[RowPlace, Ids, Array], None]
"""Called with the values of a row frame, shape (ids, columns), before they are summed; may change or refuse them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a parameter: distinct ascending ids, and values of shape (ids, columns)."""

    place: RowPlace
    ids: Ids
    values: Array

    def at(self, place: RowPlace) -> "Rows":
        """Return the same elements as shorter rows, which a finer `place` has."""
        return self if place == self.place else Rows(place, *_split(self.place, place, self.ids, self.values))

    def add_to(self, slab: Array) -> None:
        """Add the rows to the parameter's elements in a slab."""
        table = self.place.table(slab)
        # What overflows here overflows in torch, too.
        with np.errstate(all="ignore"):
            table[self.ids] += self.values


class RowSums:
    """The sum of any number of row frames. Rows with the same id are added in the order of their arrival.

    It keeps at most about twice the elements of each parameter that it has rows of, and the row ids; a summation
    briefly takes as much as one of the parameters again. Not thread-safe: one frame at a time.
    """

    def __init__(self, extents: tuple[Extent, ...]) -> None:
        self._extents = extents
        self._parts: dict[RowPlace, list[tuple[Ids, Array]]] = {}
        self._waiting: dict[RowPlace, int] = {}
        self._finest: dict[RowPlace, RowPlace] = {}
        """For each `whole` place, the place with the shortest rows so far, which all its rows are split into."""

    def add(self, frame: RowFrame, accept: Accept | None = None) -> RowPlace:
        """Add a frame; return its parameter's `whole` place.

        `accept` prepares the values for the sum, or refuses them; without it all values must be finite. Raises
        `InvalidRequest`, `DtypeMismatch`, or whatever the frame's own check or `accept` raises, and then adds nothing.
        """
        table_of(self._extents, frame)
        place = _place_of(self._extents, frame)
        values = np.empty((frame.count, place.columns), DTYPES[COMPUTED[place.dtype]])
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
        """Return the finest place of a parameter so far; split the rows that were added with longer rows."""
        known = self._finest.get(place.whole, place)
        finest = self._finest[place.whole] = known.finer(place)
        if known != finest:
            self._parts[finest] = [_split(known, finest, *part) for part in self._parts.pop(known)]
            self._waiting[finest] = sum(len(ids) for ids, _ in self._parts[finest])
            del self._waiting[known]
        return finest

    def bytes_with(self, frames: Iterable[RowFrame]) -> int:
        """Return the bytes it would hold with these frames; raise `InvalidRequest` if one addresses no parameter."""
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
        """The number of elements that it holds now."""
        return sum(values.size for parts in self._parts.values() for _, values in parts)

    def _merge(self, place: RowPlace) -> Rows:
        parts = self._parts[place]
        if len(parts) > 1:
            ids, values = np.concatenate([ids for ids, _ in parts]), np.concatenate([values for _, values in parts])
            parts.clear()  # frees the parts before `merge` makes another copy
        else:
            ids, values = parts[0]
        merged = merge(ids, values)
        self._parts[place], self._waiting[place] = [merged], 0
        return Rows(place, *merged)

    def sums(self) -> Iterator[Rows]:
        """Yield the summed rows of each parameter that a frame addressed, even by a frame without rows."""
        for place in self._parts:
            yield self._merge(place)


def merge(ids: Ids, values: Array) -> tuple[Ids, Array]:
    """Sum the rows of each id in their order; return distinct ascending ids and their sums."""
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
    """Raise `NonfiniteGradient` if a value is NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        first = int(finite.argmin())
        raise NonfiniteGradient(parameter=place.name, value=values.flat[first], index=place.element(ids, first))


def place_of(extents: tuple[Extent, ...], group: int, parameter: int) -> RowPlace:
    """Return where the rows of a parameter lie; raise `InvalidRequest` if it does not exist or has no dimension."""
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


def table_of(extents: tuple[Extent, ...], frame: RowFrame) -> RowPlace:
    """Check a frame against its parameter, and return the parameter's `whole` place; raise what `RowSums.add` does."""
    place = _place_of(extents, frame)
    frame.check(place.name, place.rows, place.columns)
    dtype = DTYPES[COMPUTED[place.dtype]]
    if not frame.encoding.converts and not frame.encoding.keeps(dtype):
        got = frame.encoding.name
        raise DtypeMismatch(what=GRADIENT, parameter=place.name, expected=dtype.name, got=got)
    return place.whole


def _place_of(extents: tuple[Extent, ...], frame: RowFrame) -> RowPlace:
    return place_of(extents, frame.group, frame.parameter).with_dims(max(1, frame.sparse_dims))


def _split(place: RowPlace, finer: RowPlace, ids: Ids, values: Array) -> tuple[Ids, Array]:
    """Split rows of one place into the shorter rows of a finer one; ascending ids stay ascending."""
    if place == finer:
        return ids, values
    parts = finer.rows // max(1, place.rows)
    numbers = ids[:, None] * parts + np.arange(parts)
    return numbers.reshape(-1), values.reshape(numbers.size, finer.columns)


# Every push of a job looks up the same parameters.
@lru_cache(maxsize=256)
def _places(extents: tuple[Extent, ...]) -> list[list[RowPlace | str]]:
    """Return the place of each parameter by group and index, or only its name if it has no dimension."""
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
    """Write rows into the slabs, and zeros into all other elements of their parameters."""
    for each in rows:
        slab = slabs[each.place.extent][each.place.slab]
        each.place.table(slab)[:] = 0
        each.place.table(slab)[each.ids] = each.values
