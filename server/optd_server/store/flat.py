"""Flat buffers: one array a slab of every extent, addressed by element ranges of groups as frames address them."""

from collections.abc import Iterable, Iterator, Sequence
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
    """How many bytes the weights of all groups take."""
    return sum(segment.count * DTYPES[segment.dtype].itemsize for layout in layouts for segment in layout.segments)


def computed_bytes_of(layouts: Iterable[GroupLayout]) -> int:
    """How many bytes a gradient of all groups takes, or a state that has a number for each weight."""
    segments = [segment for layout in layouts for segment in layout.segments]
    return sum(segment.count * DTYPES[COMPUTED[segment.dtype]].itemsize for segment in segments)


class FlatBuffers:
    """Arrays by extent and slab, of zeros at first: what nobody has written must not tell what lay there before."""

    def __init__(self, extents: Iterable[Extent], allocate: Allocate = Region) -> None:
        self.extents: tuple[Extent, ...] = ()
        self.regions: list[Region] = []
        self.slabs: list[list[Array]] = []
        """By extent and slab."""
        self.arrays: list[list[Array]] = []
        """By group and segment: views into the slabs."""
        self._allocate = allocate
        self.extend(extents)

    def extend(self, extents: Iterable[Extent]) -> None:
        """Allocates those of `extents` that are not there yet."""
        for extent in tuple(extents)[len(self.extents) :]:
            self._add(extent, self._allocate(extent.bytes))

    def copy(self) -> "FlatBuffers":
        """Equal buffers in memory of their own, which nobody else can map."""
        made = FlatBuffers(self.extents)
        for target, source in zip(made.all_slabs(), self.all_slabs(), strict=True):
            target[:] = source
        return made

    def adopt(self, others: "FlatBuffers") -> None:
        """Takes the extents of `others` over behind its own, without copying."""
        for extent, region in zip(others.extents, others.regions, strict=True):
            self._add(extent, region)

    def release(self) -> None:
        """Lets go of all arrays; the memory goes with the last one that somebody else has."""
        self.extents = ()
        self.regions, self.slabs, self.arrays = [], [], []

    def _add(self, extent: Extent, region: Region) -> None:
        self.extents = (*self.extents, extent)
        self.regions.append(region)
        slabs = [region.array(slab.numbers, slab.byte_offset, slab.count) for slab in extent.slabs]
        self.slabs.append(slabs)
        for layout, places in zip(extent.layouts, extent.places, strict=True):
            self.arrays.append(
                [
                    slabs[place.slab][place.start : place.start + segment.count]
                    for place, segment in zip(places, layout.segments, strict=True)
                ]
            )

    def all_slabs(self) -> Iterator[Array]:
        """Every slab, in order."""
        for slabs in self.slabs:
            yield from slabs


class FrameSink:
    """Collects frames of one field into flat buffers and keeps account of what has been written.

    `groups` are the names of the buffers' groups, and `first_group` is the index that frames give to the first of
    them. Not thread-safe: one frame at a time.
    """

    def __init__(self, buffers: FlatBuffers, field: str, groups: Sequence[str], *, first_group: int = 0) -> None:
        self.buffers = buffers
        self.ledger = Ledger(buffers.extents, field, groups, first_group=first_group)
        self._field = field

    def write_all(self, frames: Iterable[Frame]) -> None:
        """Writes one frame after the other; raises what `claim` raises, and writes nothing of that frame then."""
        for frame in frames:
            frame.check()
            frame.decode_into(self.claim(frame))

    def claim(self, frame: Frame) -> Array:
        """The elements that a frame is for, which count as written from now on; raises what `Ledger.claim` raises."""
        extent, slab, start = self.place(frame)
        return self.buffers.slabs[extent][slab][start : start + frame.count]

    def place(self, frame: Frame) -> tuple[int, int, int]:
        """As `claim`: the extent and slab that these elements lie in, and the first of them."""
        if frame.field not in ("", self._field):
            raise InvalidRequest(problem=f"a frame of {frame.field!r} among frames of {self._field!r}")
        if self._field != GRADIENT and not frame.encoding.carries_weights:
            raise InvalidRequest(problem=f"{self._field} cannot be sent in encoding {frame.encoding.name}")
        return self.ledger.claim(frame.group, frame.offset, frame.count, _only_dtype(frame.encoding))


def _only_dtype(encoding: Encoding) -> np.dtype[Any] | None:
    """The dtype that numbers must become; None where they may become any."""
    return None if encoding.converts else encoding.dtype
