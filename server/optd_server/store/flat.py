"""Flat buffers: one array a segment of every group, addressed by element ranges as frames address them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.store.coverage import Coverage
from optd_wire.dtypes import DTYPES
from optd_wire.errors import (
    DtypeMismatch,
    FrameOutOfRange,
    FrameOverlap,
    IncompleteParameter,
    InvalidRequest,
)
from optd_wire.frames import Frame
from optd_wire.layout import GroupLayout, Segment
from optd_wire.values import GRADIENT, ParameterInfo

Array = npt.NDArray[Any]


def bytes_of(layouts: Sequence[GroupLayout]) -> int:
    """How many bytes one array an element takes for all groups."""
    return sum(segment.count * DTYPES[segment.dtype].itemsize for layout in layouts for segment in layout.segments)


def segment_at(layout: GroupLayout, frame: Frame) -> int:
    """The index of the segment that a frame lies in; raises `FrameOutOfRange`.

    A frame without elements may lie on the border of two segments; it belongs to the one of its dtype.
    """
    holding = [
        index
        for index, segment in enumerate(layout.segments)
        if segment.offset <= frame.offset and frame.stop <= segment.offset + segment.count
    ]
    if not holding:
        ranges = ", ".join(f"[{s.offset}, {s.offset + s.count}) {s.dtype}" for s in layout.segments)
        raise FrameOutOfRange(group=frame.group, start=frame.offset, stop=frame.stop, ranges=ranges)
    return next((i for i in holding if DTYPES[layout.segments[i].dtype] == frame.encoding.dtype), holding[0])


def parameter_at(layout: GroupLayout, segment: Segment, offset: int) -> ParameterInfo:
    """The parameter that element `offset` of the group belongs to, or the last one before it."""
    members = [layout.parameters[index] for index in segment.members]
    holding = [parameter for parameter in members if parameter.offset <= offset and parameter.size]
    return holding[-1] if holding else members[0]


class FlatBuffers:
    """Arrays by group and segment, of zeros at first: what nobody has written must not tell what lay there before."""

    def __init__(self, layouts: Sequence[GroupLayout]) -> None:
        self.layouts: list[GroupLayout] = []
        self.arrays: list[list[Array]] = []
        self.extend(layouts)

    def extend(self, layouts: Sequence[GroupLayout]) -> None:
        """Allocates the groups of `layouts` that are not there yet."""
        for layout in layouts[len(self.layouts) :]:
            self.layouts.append(layout)
            self.arrays.append([np.zeros(segment.count, DTYPES[segment.dtype]) for segment in layout.segments])

    def adopt(self, others: "FlatBuffers") -> None:
        """Takes the groups of `others` over behind its own, without copying."""
        self.layouts.extend(others.layouts)
        self.arrays.extend(others.arrays)


class FrameSink:
    """Collects frames of one field into flat buffers and keeps account of what has been written.

    `groups` are the names of the buffers' groups, and `first_group` is the index that frames give to the first of
    them. Not thread-safe: one frame at a time.
    """

    def __init__(self, buffers: FlatBuffers, field: str, groups: Sequence[str], *, first_group: int = 0) -> None:
        self.buffers = buffers
        self.coverage = [[Coverage() for _ in layout.segments] for layout in buffers.layouts]
        self._field = field
        self._groups = groups
        self._first_group = first_group

    def write_all(self, frames: Iterable[Frame]) -> None:
        """Writes one frame after the other; raises what `write` raises."""
        for frame in frames:
            self.write(frame)

    def write(self, frame: Frame) -> None:
        """Decodes a frame into its place, whatever dtype that has unless the encoding is exact.

        Raises `FrameOutOfRange`, `DtypeMismatch`, `FrameOverlap`, `InvalidRequest` or `MalformedMessage`, and writes
        nothing then.
        """
        layouts = self.buffers.layouts
        group = frame.group - self._first_group
        if not 0 <= group < len(layouts):
            groups = f"[{self._first_group}, {self._first_group + len(layouts)})"
            raise InvalidRequest(problem=f"a frame addresses group {frame.group}; it must be in {groups}")
        if frame.field not in ("", self._field):
            raise InvalidRequest(problem=f"a frame of {frame.field!r} among frames of {self._field!r}")
        layout = layouts[group]
        index = segment_at(layout, frame)
        segment = layout.segments[index]
        if not frame.encoding.carries_weights and self._field != GRADIENT:
            problem = f"{self._field} cannot be sent in encoding {frame.encoding.name}: it is for gradients"
            raise InvalidRequest(problem=problem)
        if frame.encoding.exact and frame.encoding.dtype != DTYPES[segment.dtype]:
            raise DtypeMismatch(
                what=self._field,
                parameter=parameter_at(layout, segment, frame.offset).name,
                expected=segment.dtype,
                got=frame.encoding.name,
            )
        frame.check()
        start = frame.offset - segment.offset
        twice = self.coverage[group][index].add(start, start + frame.count)
        if twice is not None:
            raise FrameOverlap(
                parameter=parameter_at(layout, segment, twice + segment.offset).name,
                field=self._field,
                element=twice + segment.offset,
                group=self._groups[group],
            )
        frame.decode_into(self.buffers.arrays[group][index][start : start + frame.count])

    def presence(self) -> list[list[npt.NDArray[np.bool_]]]:
        """By group and segment: which of its parameters (in the segment's order) have been written whole.

        Raises `IncompleteParameter` where one was written in part.
        """
        return [
            [self._presence_in(group, layout, index, segment) for index, segment in enumerate(layout.segments)]
            for group, layout in enumerate(self.buffers.layouts)
        ]

    def _presence_in(self, group: int, layout: GroupLayout, index: int, segment: Segment) -> npt.NDArray[np.bool_]:
        members = [layout.parameters[member] for member in segment.members]
        starts = np.array([parameter.offset - segment.offset for parameter in members], np.int64)
        sizes = np.array([parameter.size for parameter in members], np.int64)
        whole, partial = self.coverage[group][index].of(starts, sizes)
        if partial.any():
            worst = int(partial.argmax())
            start, size = int(starts[worst]), int(sizes[worst])
            raise IncompleteParameter(
                what=self._field,
                parameter=members[worst].name,
                got=self.coverage[group][index].elements(start, start + size),
                size=size,
            )
        return whole

    def require_all(self) -> None:
        """Raises `IncompleteParameter` for the first parameter that has not been written whole."""
        for layout, by_segment in zip(self.buffers.layouts, self.presence(), strict=True):
            for segment, whole in zip(layout.segments, by_segment, strict=True):
                for member, there in zip(segment.members, whole, strict=True):
                    parameter = layout.parameters[member]
                    # There is no element of an empty parameter that could be missing.
                    if not there and parameter.size:
                        raise IncompleteParameter(
                            what=self._field, parameter=parameter.name, got=0, size=parameter.size
                        )
