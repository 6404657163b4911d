"""Cut flat arrays into frames, and group the frames into messages of a size that travels well."""

from collections.abc import Collection, Iterable, Iterator

from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import encoding_for
from optd_wire.frames import MAX_FRAMES, Frame, GatheredFrame, Outgoing

# Bulk data travels fastest in messages of one to a few MiB, which is well below the limit on messages.
BATCH_BYTES = 1 << 20
# At least as large as the header of any frame.
FRAME_OVERHEAD = 64


def batches_of(
    frames: Iterable[Frame],
    most_bytes: int = BATCH_BYTES,
    encoding: Encoding | None = None,
    exact: Collection[int] = (),
) -> Iterator[list[Outgoing]]:
    """Cut and gather frames of plain numbers into lists, each of which fits a message of about `most_bytes`.

    An `encoding` is used for the dtypes for which it saves bytes, except for frames of the groups in `exact`. Nothing
    is encoded yet: `optd_wire.frames.encode` does that.
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
