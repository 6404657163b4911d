"""Arrays to frames and back: the user's arrays on one side, the flat ranges of a job's groups on the other."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optd.params.copying import Pair, copy_all
from optd.transport.numbers import Source
from optd_wire.dtypes import DTYPES
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import encoding_for
from optd_wire.frames import Frame, GatheredFrame
from optd_wire.layout import GroupLayout, Segment, lay_out
from optd_wire.values import FlatRange, ParameterInfo, ParameterSpec

Array = npt.NDArray[Any]
ArraysByGroup = Sequence[Sequence[Array]]
"""Arrays by group and by place in its list of parameters."""
OptionalArraysByGroup = Sequence[Sequence[Array | None]]
"""As `ArraysByGroup`; None stands for a parameter without numbers."""
# Bulk streams are fastest with messages of one to a few MiB.
BATCH_BYTES = 1 << 20
BATCH_FRAMES = 1024
# A frame's own header, with room to spare.
FRAME_OVERHEAD = 64


class FlatView:
    """The layouts of a job's groups. Parameters are addressed by group and by place in its list."""

    def __init__(
        self,
        groups: Sequence[Sequence[ParameterSpec | ParameterInfo]],
        *,
        first_group: int = 0,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self._batch_bytes = batch_bytes
        self.layouts = [lay_out(parameters) for parameters in groups]
        self._first_group = first_group
        self._order = [_Order(layout) for layout in self.layouts]

    def source(
        self,
        arrays: OptionalArraysByGroup,
        field: str = "",
        encoding: Encoding | None = None,
        most_bytes: int | None = None,
    ) -> Source:
        """A source of the frames of `arrays`; parameters whose array is None are left out.

        Frames are exact unless `encoding` saves bytes. A list of frames suits one message, or has up to `most_bytes`.
        The bounds of frames depend only on shapes, dtypes, the encoding, and which arrays are None.
        """
        return lambda: self.batches(arrays, field, encoding, most_bytes)

    def batches(
        self,
        arrays: OptionalArraysByGroup,
        field: str = "",
        encoding: Encoding | None = None,
        most_bytes: int | None = None,
    ) -> Iterator[list[GatheredFrame]]:
        """The lists of frames that one call of `source` yields."""
        batch: list[GatheredFrame] = []
        most = most_bytes or self._batch_bytes
        room = most
        for frame in self._frames(arrays, field, encoding, most):
            size = frame.encoding.bytes_of(frame.count)
            if batch and (size + FRAME_OVERHEAD > room or len(batch) == BATCH_FRAMES):
                yield batch
                batch, room = [], most
            batch.append(frame)
            room -= size + FRAME_OVERHEAD
        if batch:
            yield batch

    def _frames(
        self, arrays: OptionalArraysByGroup, field: str, encoding: Encoding | None, most_bytes: int
    ) -> Iterator[GatheredFrame]:
        """Runs of neighbouring parameters, cut so that no frame has more bytes than a batch."""
        for group, (layout, given) in enumerate(zip(self.layouts, arrays, strict=True), self._first_group):
            for segment in layout.segments:
                for run in _runs(layout, segment, given):
                    chosen = encoding_for(run.dtype, encoding)
                    most = chosen.elements_in(most_bytes - FRAME_OVERHEAD)
                    for start, pieces in run.cut(most):
                        count = sum(piece.size for piece in pieces)
                        yield GatheredFrame(group, start, count, chosen, pieces, field)

    def rows(self, frames: Sequence[Frame]) -> list[list[Array]]:
        """Views of frames that hold whole segments exactly, by group and place; ignores frames of other groups."""
        rows = [[np.empty(0)] * len(layout.parameters) for layout in self.layouts]
        for frame in frames:
            group = frame.group - self._first_group
            if not 0 <= group < len(self.layouts):
                continue
            layout, values = self.layouts[group], frame.values
            segment = next(s for s in layout.segments if s.offset == frame.offset and s.count == frame.count)
            for place in segment.members:
                parameter = layout.parameters[place]
                start = parameter.offset - frame.offset
                rows[group][place] = values[start : start + parameter.size].reshape(parameter.shape)
        return rows

    def ranges(self, arrays: OptionalArraysByGroup) -> list[FlatRange]:
        """The ranges of the parameters that have an array, in order; neighbours of one dtype are joined."""
        joined: list[FlatRange] = []
        for group, (layout, given) in enumerate(zip(self.layouts, arrays, strict=True), self._first_group):
            for segment in layout.segments:
                start = stop = -1
                for parameter in [layout.parameters[member] for member in segment.members if given[member] is not None]:
                    if parameter.offset != stop and start >= 0:
                        joined.append(FlatRange(group, start, stop - start))
                    start = start if parameter.offset == stop else parameter.offset
                    stop = parameter.offset + parameter.size
                if start >= 0:
                    joined.append(FlatRange(group, start, stop - start))
        return joined

    def write(self, frames: Sequence[Frame], arrays: ArraysByGroup) -> None:
        """Copies frames into the arrays of their ranges; arrays may have any strides."""
        pairs: list[Pair] = []
        for frame in frames:
            self._write(frame, arrays, pairs)
        copy_all(pairs)

    def _write(self, frame: Frame, arrays: ArraysByGroup, pairs: list[Pair]) -> None:
        """Copies a frame, or adds its copies to `pairs`."""
        group = frame.group - self._first_group
        if not 0 <= group < len(self.layouts):
            return  # a group that another worker has added
        order = self._order[group]
        index = max(0, bisect_right(order.offsets, frame.offset) - 1)
        numbers: Array | None = None
        while index < len(order.offsets) and order.offsets[index] < frame.stop:
            start = order.offsets[index]
            array = arrays[group][order.members[index]]
            low, high = max(start, frame.offset), min(start + array.size, frame.stop)
            contiguous = array.flags.c_contiguous
            if contiguous and not frame.encoding.keeps(array.dtype) and high - low == frame.count:
                frame.decode_into(array.reshape(-1)[low - start : high - start])
            elif low < high:
                if numbers is None:
                    numbers = frame.decoded(array.dtype)
                part = numbers[low - frame.offset : high - frame.offset]
                if contiguous:
                    pairs.append((array.reshape(-1)[low - start : high - start], part))
                else:
                    array.flat[low - start : high - start] = part
            index += 1


@dataclass(slots=True)
class _Run:
    """Arrays of one dtype whose ranges follow one another from `offset` on."""

    offset: int
    dtype: np.dtype[Any]
    arrays: list[Array]

    def cut(self, most: int) -> Iterator[tuple[int, list[Array]]]:
        """Parts of at most `most` elements: their offsets and pieces. A run without elements is one part."""
        pieces: list[Array] = []
        start, count = self.offset, 0
        for array in self.arrays:
            flat = np.ascontiguousarray(array).reshape(-1)
            position = 0
            while True:
                part = flat[position : position + most - count]
                pieces.append(part)
                count += part.size
                position += part.size
                if count == most:
                    yield start, pieces
                    start, pieces, count = start + count, [], 0
                if position >= flat.size:
                    break
        if pieces:
            yield start, pieces


def _runs(layout: GroupLayout, segment: Segment, given: Sequence[Array | None]) -> Iterator[_Run]:
    """The runs of a segment's arrays that are not None. Their dtype may differ from the segment's."""
    run: _Run | None = None
    for member in segment.members:
        array = given[member]
        if run is not None and (array is None or array.dtype != run.dtype):
            yield run
            run = None
        if array is not None:
            run = run or _Run(layout.parameters[member].offset, array.dtype, [])
            run.arrays.append(array)
    if run is not None:
        yield run


class _Order:
    """Parameters that have elements, in the order of their offsets."""

    def __init__(self, layout: GroupLayout) -> None:
        filled = [(parameter.offset, member) for member, parameter in enumerate(layout.parameters) if parameter.size]
        filled.sort()
        self.offsets = [offset for offset, _ in filled]
        self.members = [member for _, member in filled]


def empty_arrays(
    groups: Sequence[Sequence[ParameterSpec | ParameterInfo]], dtypes: Mapping[str, np.dtype[Any]] = DTYPES
) -> list[list[Array]]:
    """New arrays for all parameters, including those without elements; `dtypes` maps the parameters' dtypes."""
    return [[np.empty(parameter.shape, dtypes[parameter.dtype]) for parameter in parameters] for parameters in groups]


def same_bits(one: Array, other: Array) -> bool:
    """Whether two arrays are equal in shape, dtype and every bit, so that NaN equals itself and 0 is not -0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = f"u{one.dtype.itemsize}"
    left, right = np.ascontiguousarray(one).reshape(-1), np.ascontiguousarray(other).reshape(-1)
    return bool(np.array_equal(left.view(bits), right.view(bits)))
