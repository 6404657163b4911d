"""Rows of parameters by their ids: as callers ask for them, and as a server sends them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from optd.params.flat_view import Array
from optd.params.groups import ParamGroup
from optd_wire.errors import InvalidRequest, NotAnArray, UnexpectedStatus, UnknownParameter
from optd_wire.frames import Frame, Received
from optd_wire.row_frames import Ids, RowFrame, check_ids, table_shape


def read_ids(ids: Any, name: str, shape: tuple[int, ...]) -> Ids:
    """Checks the ids of rows of the parameter `name`.

    Raises `NotAnArray` if they are no list of integers, `RowOutOfRange`, or `InvalidRequest` for a parameter without
    dimensions.
    """
    if not shape:
        raise InvalidRequest(problem=f"parameter {name!r} has no rows, as its shape is ()")
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        got = f"shape {array.shape} of {array.dtype}"
        raise NotAnArray(what=f"rows of parameter {name!r}", wanted="integers in one dimension", got=got)
    check_ids(array, name, shape[0])
    return array.astype(np.uint64)


class RowSink:
    """Takes the rows of one answer, in the order of the request."""

    def __init__(self, name: str, rows: int, ids: Ids, out: Array) -> None:
        self._name = name
        self._rows = rows
        self._ids = ids
        self._out = out
        self._end = 0

    def write(self, frames: list[RowFrame]) -> None:
        """Writes the rows of one message. Raises what is wrong with them."""
        elements = int(np.prod(self._out.shape[1:], dtype=np.int64))
        for frame in frames:
            frame.check(self._name, self._rows, elements)
            stop = self._end + frame.count
            if not np.array_equal(frame.ids, self._ids[self._end : stop]):
                raise _unexpected("rows that were not asked for")
            frame.decode_into(self._out[self._end : stop])
            self._end = stop

    def close(self) -> None:
        """Raises `UnexpectedStatus` unless all rows have come."""
        if self._end != self._ids.size:
            raise _unexpected(f"{self._end} of {self._ids.size} rows")


def _unexpected(problem: str) -> UnexpectedStatus:
    return UnexpectedStatus(rpc="PullRows", address="the server", status="OK", problem=f"it sent {problem}")


def whole_frames(received: Sequence[Received]) -> list[Frame]:
    """The received frames that are not rows."""
    return [frame for frame in received if isinstance(frame, Frame)]


def write_rows(received: Sequence[Received], groups: Sequence[ParamGroup]) -> None:
    """Writes received rows into the arrays of the groups; ignores groups that are not registered here."""
    for frame in received:
        if isinstance(frame, RowFrame) and frame.group < len(groups):
            group = groups[frame.group]
            array, name = group.arrays[frame.parameter], group.names[frame.parameter]
            rows, elements = table_shape(array.shape, frame.sparse_dims)
            frame.check(name, rows, elements)
            values = np.empty((frame.count, elements), array.dtype)
            frame.decode_into(values)
            # The array may have any strides, so ids become indices along the leading dimensions.
            dims = max(1, frame.sparse_dims)
            places = np.unravel_index(frame.ids.astype(np.int64), array.shape[:dims])
            array[places] = values.reshape(frame.count, *array.shape[dims:])


def find_array(groups: Sequence[ParamGroup], name: str, job: str) -> Array:
    """The array of a parameter by its name; raises `UnknownParameter`."""
    for group in groups:
        for known, array in zip(group.names, group.arrays, strict=True):
            if known == name:
                return array
    raise UnknownParameter(where=f"job {job!r}", parameter=name)
