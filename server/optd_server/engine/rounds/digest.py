"""The checksum of a push: it tells a push that is sent again from another push under the same number.

It covers what the header says about the gradient, and the frames in the order in which they come. Of a gradient in
shared memory, which may be larger than what a step has time to read, it covers evenly spaced samples. A checksum tells
in its last bit which kind it is, because checksums of different kinds do not compare.
"""

from collections.abc import Sequence

import numpy as np
import xxhash

from optd_server.engine.offload import Offload
from optd_server.engine.step.reduction import present_ranges
from optd_server.store.extents import Extent
from optd_server.store.flat import Array
from optd_server.store.gradients import Gradient
from optd_wire.frames import Frame, Received
from optd_wire.values import PushHeader

SAMPLES = 64
SAMPLE_BYTES = 4096


class Digest:
    """The checksum of one push, which grows with its frames."""

    __slots__ = ("_hash", "_is_shared")

    def __init__(self, header: PushHeader) -> None:
        self._is_shared = False
        said = (header.base_version, header.weight, header.loss_scale, header.loss, header.begins, header.flush)
        # The options of a message come in any order.
        updates = [(each.group, sorted(each.options.items()), each.expected_revision) for each in header.updates]
        self._hash = xxhash.xxh3_64(repr((said, header.fragment, updates)).encode())

    def add(self, frames: Sequence[Received]) -> None:
        """Add received frames."""
        for frame in frames:
            if isinstance(frame, Frame):
                place = (frame.group, frame.offset, frame.count, frame.encoding.number)
            else:
                place = (frame.group, frame.parameter, frame.count, frame.encoding.number)
                self._hash.update(frame.ids.tobytes())
            self._hash.update(repr(place).encode())
            self._hash.update(frame.payload)  # type: ignore[arg-type]  # numpy does not say that an array is a buffer

    async def added(self, frames: Sequence[Received], offload: Offload) -> None:
        """Add received frames, in another thread if they are large."""
        await offload.copy(sum([size_of(frame) for frame in frames]) // 4, lambda: self.add(frames))

    def add_shared(self, gradient: Gradient, extents: Sequence[Extent]) -> None:
        """Add samples of a gradient in shared memory: of the parameters that it has, not of what lies beside them."""
        self._is_shared = True
        for extent, slabs, presence in zip(extents, gradient.slabs, gradient.presence, strict=False):
            for slab, array, present in zip(extent.slabs, slabs, presence, strict=True):
                self._hash.update(np.packbits(present).tobytes())
                ranges = present_ranges(present, slab.starts, slab.sizes)
                for start, stop in ranges:
                    self._sample(array[start:stop], max(1, SAMPLES // len(ranges)))

    def _sample(self, array: Array, samples: int) -> None:
        data = memoryview(array).cast("B")  # type: ignore[arg-type]
        if len(data) <= samples * SAMPLE_BYTES:
            self._hash.update(data)
            return
        for start in np.linspace(0, len(data) - SAMPLE_BYTES, samples).astype(np.int64).tolist():
            self._hash.update(data[start : start + SAMPLE_BYTES])

    @property
    def checksum(self) -> int:
        """The checksum of what was added, in [2, 2**64)."""
        found = self._hash.intdigest() & ~1 | 2
        return found | self._is_shared


def differs(one: int, other: int) -> bool:
    """Whether two checksums are of different pushes. An unknown one, 0, and one of the other kind tell nothing."""
    return bool(one and other) and one & 1 == other & 1 and one != other


def size_of(frame: Received) -> int:
    """Return the bytes of a frame's numbers."""
    return len(frame.payload) if isinstance(frame.payload, bytes) else frame.payload.nbytes
