"""Flat buffers: one array for each slab of each extent, and a sink that writes frames into them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent
from optd_server.store.ledger import Ledger
from optd_server.store.memory import Allocate, Region
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.encodings.base import Encoding
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame
from optd_wire.layout import GroupLayout
from optd_wire.values import GRADIENT

Array = npt.NDArray[Any]


def bytes_of(layouts: Iterable[GroupLayout]) -> int:
    """Return the number of bytes that the weights of all groups take."""
    return sum(segment.count * DTYPES[segment.dtype].itemsize for layout in layouts for segment in layout.segments)


def computed_bytes_of(layouts: Iterable[GroupLayout]) -> int:
    """Return the bytes of a gradient of all groups, or of a state field with one number for each weight."""
    segments = [segment for layout in layouts for segment in layout.segments]
    return sum(segment.count * DTYPES[COMPUTED[segment.dtype]].itemsize for segment in segments)


class FlatBuffers:
    """One array for each extent and slab.

    All are zero at first, so that elements which nobody has written never reveal what the memory held before.
    """

    def __init__(self, extents: Iterable[Extent], allocate: Allocate = Region) -> None:
        self.extents: tuple[Extent, ...] = ()
        self.regions: list[Region] = []
        self.slabs: list[list[Array]] = []
        """Indexed by extent, then by slab."""
        self.arrays: list[list[Array]] = []
        """Views into the slabs, indexed by group, then by segment."""
        self._allocate = allocate
        self.extend(extents)

    def extend(self, extents: Iterable[Extent]) -> None:
        """Allocate memory for those of `extents` that it does not have yet; raise `OSError` if there is none."""
        wanted = tuple(extents)
        if len(wanted) == len(self.extents):
            return
        for extent in wanted[len(self.extents) :]:
            self._add(extent, self._allocate(extent.bytes))

    def copy(self) -> "FlatBuffers":
        """Equal buffers in memory of their own, which nobody else can map."""
        made = FlatBuffers(self.extents)
        for target, source in zip(made.all_slabs(), self.all_slabs(), strict=True):
            target[:] = source
        return made

    def adopt(self, others: "FlatBuffers") -> None:
        """Append the extents of `others` and take over their memory, without a copy."""
        for extent, region in zip(others.extents, others.regions, strict=True):
            self._add(extent, region)

    def release(self) -> None:
        """Drop all arrays. The memory is freed when nobody else refers to it either."""
        self.extents = ()
        self.regions, self.slabs, self.arrays = [], [], []

    def _add(self, extent: Extent, region: Region) -> None:
        self.extents = (*self.extents, extent)
        self.regions.append(region)
        slabs = [region.array(slab.element_dtype, slab.byte_offset, slab.count) for slab in extent.slabs]
        self.slabs.append(slabs)
        for layout, places in zip(extent.layouts, extent.places, strict=True):
            self.arrays.append(
                [
                    slabs[place.slab][place.start : place.start + segment.count]
                    for place, segment in zip(places, layout.segments, strict=True)
                ]
            )

    def all_slabs(self) -> Iterator[Array]:
        """Yield every slab, in order."""
        for slabs in self.slabs:
            yield from slabs


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame, and where its elements lie."""

    frame: Frame
    extent: int
    slab: int
    start: int


class FrameClaims:
    """Finds the places of the frames of one field, and records which elements they have.

    `groups` are the names of the groups in `extents`, and `first_group` is the index by which frames address the first
    of them.
    """

    def __init__(self, extents: tuple[Extent, ...], field: str, groups: Sequence[str], *, first_group: int = 0) -> None:
        self.ledger = Ledger(extents, field, groups, first_group=first_group)
        self._field = field

    def place(self, frame: Frame) -> tuple[int, int, int]:
        """Mark the elements of a frame as written; return the indices of extent and slab, and of its first element.

        Raises `InvalidRequest` for a frame of another field or in an encoding that cannot carry it, and whatever
        `Ledger.claim` raises.
        """
        if frame.field not in ("", self._field):
            raise InvalidRequest(problem=f"a frame of field {frame.field!r} in an upload of {self._field!r}")
        if self._field != GRADIENT and not frame.encoding.carries_weights:
            raise InvalidRequest(problem=f"{self._field} cannot be sent in encoding {frame.encoding.name}")
        return self.ledger.claim(frame.group, frame.offset, frame.count, _only_dtype(frame.encoding))


class FrameSink(FrameClaims):
    """Writes frames of one field into flat buffers. Not thread-safe: one frame at a time."""

    def __init__(self, buffers: FlatBuffers, field: str, groups: Sequence[str], *, first_group: int = 0) -> None:
        super().__init__(buffers.extents, field, groups, first_group=first_group)
        self.buffers = buffers

    def write_all(self, frames: Iterable[Frame]) -> None:
        """Write frames in order; raise what `claim` raises, and then write neither that frame nor later ones."""
        for frame in frames:
            frame.check()
            frame.decode_into(self.claim(frame))

    def claim(self, frame: Frame) -> Array:
        """Mark the elements that a frame addresses as written, and return them; raise what `place` raises."""
        extent, slab, start = self.place(frame)
        return self.buffers.slabs[extent][slab][start : start + frame.count]


def _only_dtype(encoding: Encoding) -> np.dtype[Any] | None:
    """Return the only dtype that an encoding can be decoded into, or None if it can be decoded into any."""
    return None if encoding.converts else encoding.dtype


def copied(array: Array, spare: Array | None) -> Array:
    """Return a copy of an array, in the memory of `spare` if that has its shape and dtype."""
    if spare is None or (spare.shape, spare.dtype) != (array.shape, array.dtype):
        return array.copy()
    np.copyto(spare, array)
    return spare
