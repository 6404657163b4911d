"""Flat arrays cut into frames of a size that suits the wire."""

from collections.abc import Iterable, Iterator

from optd_server.store.snapshots import Snapshot
from optd_wire.frames import MAX_FRAMES, Frame

# Bulk streams move fastest in messages of one to a few MiB, well below what a message may be.
FRAME_BYTES = 1 << 20
# A frame's own header, with room to spare.
FRAME_OVERHEAD = 64


def cut(frames: Iterable[Frame], most_bytes: int = FRAME_BYTES) -> Iterator[list[Frame]]:
    """Cuts and gathers frames into lists that fit one message of about `most_bytes` each."""
    batch: list[Frame] = []
    room = most_bytes
    for frame in frames:
        width = frame.values.itemsize
        position = 0
        while position < frame.values.size:
            count = min(frame.values.size - position, max(1, room // width))
            values = frame.values[position : position + count]
            batch.append(Frame(frame.group, frame.offset + position, values, frame.field))
            position += count
            room -= count * width + FRAME_OVERHEAD
            if room < width or len(batch) == MAX_FRAMES:
                yield batch
                batch, room = [], most_bytes
    if batch:
        yield batch


def weights_of(snapshot: Snapshot) -> Iterator[Frame]:
    """All weights of a snapshot, a frame a segment; valid while the snapshot is held."""
    for group, layout in enumerate(snapshot.layouts):
        for segment, array in zip(layout.segments, snapshot.arrays(group), strict=True):
            yield Frame(group, segment.offset, array)
