"""The place of each parameter in its group's flat buffer. Part of the contract: see `Frame` in tensor.proto."""

from collections.abc import Sequence
from dataclasses import dataclass

from optd_wire.dtypes import DTYPES
from optd_wire.values import ParameterInfo, ParameterSpec


@dataclass(frozen=True, slots=True)
class Segment:
    """The elements of one dtype of a group: `offset` to `offset + count` of its flat buffer.

    `members` are the indices of its parameters in the group's list, in the order of their places here.
    """

    dtype: str
    offset: int
    count: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Parameters with their offsets, in the order of the group's list, and the segments that hold them."""

    parameters: tuple[ParameterInfo, ...]
    segments: tuple[Segment, ...]

    @property
    def count(self) -> int:
        """The number of elements in the group."""
        return sum(segment.count for segment in self.segments)


def lay_out(parameters: Sequence[ParameterSpec | ParameterInfo]) -> GroupLayout:
    """Lays parameters out one after the other: by dtype in the order of `DTYPES`, then as listed."""
    offsets = [0] * len(parameters)
    segments = []
    end = 0
    for dtype in DTYPES:
        members = tuple(index for index, parameter in enumerate(parameters) if parameter.dtype == dtype)
        start = end
        for index in members:
            offsets[index] = end
            end += parameters[index].size
        if members:
            segments.append(Segment(dtype, start, end - start, members))
    placed = tuple(
        ParameterInfo(parameter.name, tuple(parameter.shape), parameter.dtype, offset)
        for parameter, offset in zip(parameters, offsets, strict=True)
    )
    return GroupLayout(placed, tuple(segments))
