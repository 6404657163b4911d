"""Gradients of some rows of a parameter, as callers give them and as frames; all other rows are zero."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from optd.params.array_like import as_array
from optd.params.flat_view import FRAME_OVERHEAD, Array
from optd.params.pulled_rows import read_ids
from optd.transport.numbers import RowSource, Source
from optd_wire.dtypes import computed_dtype
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import encoding_for
from optd_wire.errors import DtypeMismatch, NotAnArray, ShapeMismatch
from optd_wire.frames import Outgoing
from optd_wire.row_frames import Ids, RowFrame

_ID_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class RowGradient:
    """The gradient of the rows `ids` of a parameter, in any order; values of repeated ids are added up."""

    ids: Ids
    values: Array
    """Shape (ids, *shape[sparse_dims:]) for a parameter of this shape, in C order."""
    sparse_dims: int = 1
    """How many leading dimensions of the parameter the ids index, in row-major order."""

    @classmethod
    def of(cls, name: str, array: Array, given: tuple[Any, Any]) -> "RowGradient":
        """From `(ids, rows)` for the parameter `name`, whose weights are `array`.

        Raises `NotAnArray`, `ShapeMismatch`, `DtypeMismatch`, `RowOutOfRange`, or `InvalidRequest` for a parameter of
        no dimension.
        """
        ids = read_ids(given[0], name, array.shape)
        values = as_array(given[1])
        if values is None:
            wanted, got = "(ids, array)", f"(ids, {type(given[1]).__name__})"
            raise NotAnArray(what=f"gradient of parameter {name!r}", wanted=wanted, got=got)
        expected = (ids.size, *array.shape[1:])
        if values.shape != expected:
            raise ShapeMismatch(what="gradient of rows", parameter=name, expected=expected, got=values.shape)
        if values.dtype not in (array.dtype, computed_dtype(array.dtype)):
            raise DtypeMismatch(
                what="gradient of rows", parameter=name, expected=array.dtype.name, got=values.dtype.name
            )
        return cls(ids, np.ascontiguousarray(values))


Given = Array | RowGradient | None
"""The gradient of one parameter."""
GradientsByGroup = Sequence[Sequence[Given]]
"""By group and place."""


def are_rows(given: Any) -> TypeGuard[tuple[Any, Any]]:
    """Whether a value in the place of a gradient is `(ids, rows)`."""
    return type(given) is tuple and len(given) == 2


def whole_ones(gradients: GradientsByGroup) -> list[list[Array | None]]:
    """The gradients of whole parameters; None in the place of those of rows."""
    return [[None if isinstance(each, RowGradient) else each for each in row] for row in gradients]


def has_rows(gradients: GradientsByGroup) -> bool:
    """Whether there are rows among gradients."""
    return any(isinstance(each, RowGradient) for row in gradients for each in row)


@dataclass(frozen=True, slots=True)
class WithRows(RowSource):
    """A source of gradients with rows among them; the row frames follow the whole ones."""

    whole: Source
    gradients: GradientsByGroup
    encoding: Encoding | None
    """None: unchanged. An encoding that leaves numbers out is not used for rows, as they would be lost."""
    batch_bytes: int
    has_weights: bool
    """See `RowSource`."""

    def __call__(self) -> Iterator[Sequence[Outgoing]]:
        """Lists of frames of a size that suits one message each."""
        yield from self.whole()
        batch: list[Outgoing] = []
        room = self.batch_bytes
        for frame, size in self._frames():
            if batch and size > room:
                yield batch
                batch, room = [], self.batch_bytes
            batch.append(frame)
            room -= size
        yield batch

    def _frames(self) -> Iterator[tuple[RowFrame, int]]:
        for group, row in enumerate(self.gradients):
            for place, given in enumerate(row):
                if isinstance(given, RowGradient):
                    yield from self._frames_of(group, place, given)

    def _frames_of(self, group: int, place: int, given: RowGradient) -> Iterator[tuple[RowFrame, int]]:
        """The frames of one parameter with their sizes in bytes; at least one, to tell that it has a gradient."""
        wanted = None if self.encoding is None or self.encoding.leaves_out else self.encoding
        encoding = encoding_for(given.values.dtype, wanted)
        columns = int(np.prod(given.values.shape[1:], dtype=np.int64))
        most = max(1, (self.batch_bytes - FRAME_OVERHEAD) // (encoding.bytes_of(columns) + _ID_BYTES))
        for start in range(0, max(1, given.ids.size), most):
            ids, values = given.ids[start : start + most], given.values[start : start + most].reshape(-1)
            size = encoding.bytes_of(values.size) + _ID_BYTES * ids.size + FRAME_OVERHEAD
            dims = 0 if given.sparse_dims == 1 else given.sparse_dims
            yield RowFrame(group, place, ids.size, encoding, ids, encoding.encode(values), dims), size
