"""Flat arrays cut into frames of a size that suits the wire."""

from collections.abc import Collection, Iterable, Iterator

from optd_server.store.snapshots import Snapshot
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import encoding_for
from optd_wire.frames import MAX_FRAMES, Frame, GatheredFrame, Outgoing

# Bulk streams move fastest in messages of one to a few MiB, well below what a message may be.
FRAME_BYTES = 1 << 20
# A frame's own header, with room to spare.
FRAME_OVERHEAD = 64


def cut(
    frames: Iterable[Frame],
    most_bytes: int = FRAME_BYTES,
    encoding: Encoding | None = None,
    exact: Collection[int] = (),
) -> Iterator[list[Outgoing]]:
    """Cuts and gathers frames of plain numbers into lists that fit one message of about `most_bytes` each.

    With an `encoding` they are written in that one where it saves bytes, except frames of the groups in `exact`;
    `optd_wire.frames.encode` does the work.
    """
    batch: list[Outgoing] = []
    room = most_bytes
    for frame in frames:
        values = frame.values
        chosen = encoding_for(values.dtype, None if frame.group in exact else encoding)
        least = chosen.bytes_of(1)
        position = 0
        while position < frame.count:
            count = min(frame.count - position, chosen.elements_in(room))
            part = values[position : position + count]
            batch.append(GatheredFrame(frame.group, frame.offset + position, count, chosen, (part,), frame.field))
            position += count
            room -= chosen.bytes_of(count) + FRAME_OVERHEAD
            if room < least or len(batch) == MAX_FRAMES:
                yield batch
                batch, room = [], most_bytes
    if batch:
        yield batch


def weights_of(snapshot: Snapshot) -> Iterator[Frame]:
    """All weights of a snapshot, a frame a segment; valid while the snapshot is held."""
    for group, layout in enumerate(snapshot.layouts):
        for segment, array in zip(layout.segments, snapshot.arrays(group), strict=True):
            yield Frame.of(group, segment.offset, array)
