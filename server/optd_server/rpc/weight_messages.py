"""Send weights to readers: cut a snapshot into frames, encode them, and group them into messages that travel well.

All readers of one version share one encoded copy, piece by piece. A piece that was encoded for one reader is kept for
the others while there is room. For a slow reader, only the piece that it is reading is held.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from optd_server.engine.offload import Offload
from optd_server.engine.reading import Reading
from optd_server.engine.step.values import takes_values
from optd_server.rpc.batches import batches_of
from optd_server.store.versions import Snapshot
from optd_wire.encodings.base import Encoding
from optd_wire.errors import TooSlow
from optd_wire.frames import Frame, Outgoing, encode
from optd_wire.v1.training_service_pb2 import PullResponse
from optd_wire.values import FlatRange

# Enough for the readers of one round, who read at about the same time, and little compared with a large job.
KEPT_BYTES = 8 << 20
# The overhead of a kept piece, and of each range in its key. Counted because very many small pieces could be kept.
PIECE_BYTES = 512
RANGE_BYTES = 256
# Below this size, one message with header and frames costs less than two messages.
ONE_MESSAGE_BYTES = 64 << 10
# Frames have the same field number, and so the same bytes, in every kind of answer.
_FRAMES_ONLY = PullResponse()

Ranges = tuple[FlatRange, ...] | None
"""The ranges that are asked for; None means all weights."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The key of an encoded piece: which weights, in which encoding, and which message of the answer."""

    job: int
    version: int
    revision: int
    encoding: str
    ranges: Ranges
    index: int
    average: str

    def bytes_with(self, body: bytes) -> int:
        """Return the bytes that keeping `body` under this key takes."""
        return len(body) + PIECE_BYTES + (0 if self.ranges is None else len(self.ranges) * RANGE_BYTES)


class WeightMessages:
    """Encodes weights for all readers of a server. Lives on one event loop."""

    def __init__(self, offload: Offload, patience_seconds: float) -> None:
        self._offload = offload
        self._patience = patience_seconds
        self._kept: OrderedDict[_Piece, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[_Piece, asyncio.Event] = {}

    async def answer(
        self,
        reading: Reading,
        *,
        encoding: Encoding | None,
        ranges: Ranges,
        first: Message,
        last: Message | None = None,
        average: str = "",
    ) -> AsyncIterator[bytes]:
        """Yield the messages of an answer: `first` with the first frames, then frames alone, then `last` with the last.

        `encoding` is a lossy one, or None for exact numbers. `average` names the average that `reading` holds instead
        of weights. Raises `TooSlow` if the reader is slow while a step waits for the memory that it holds, and
        `EncodingOverflow` if a number does not fit the encoding.
        """
        began, snapshot = time.monotonic(), reading.snapshot
        head = first.SerializeToString()
        tail = b"" if last is None else last.SerializeToString()
        version = snapshot.version
        name = "" if encoding is None else encoding.name
        # Workers push values back as they have got them, so these are never rounded.
        exact = [] if encoding is None else [i for i, o in enumerate(snapshot.options) if takes_values(o.algorithm)]
        for index, frames in enumerate(batches_of(_frames(snapshot, ranges), encoding=encoding, exact=exact)):
            if reading.is_in_the_way and time.monotonic() - began > self._patience:
                raise TooSlow(version=version.version, seconds=f"{self._patience:g}")
            piece = _Piece(reading.job, version.version, version.revision, name, ranges, index, average)
            body = await self._encoded(piece, frames)
            # In protobuf, the bytes of two messages in a row are the bytes of both merged.
            if len(head) + len(body) <= ONE_MESSAGE_BYTES:
                head += body
                continue
            if head:
                yield head
            yield body
            head = b""
        if head or tail:
            yield head + tail

    async def _encoded(self, piece: _Piece, frames: Sequence[Outgoing]) -> bytes:
        while piece in self._under_way:  # all readers of a round arrive at once
            await self._under_way[piece].wait()
        found = self._kept.get(piece)
        if found is not None:
            self._kept.move_to_end(piece)
            return found
        done = self._under_way[piece] = asyncio.Event()
        elements = sum(frame.count for frame in frames)
        try:
            body = await self._offload.copy(elements, lambda: encode(_FRAMES_ONLY, frames))
            self._keep(piece, body)
        finally:
            del self._under_way[piece]
            done.set()
        return body

    def _keep(self, piece: _Piece, body: bytes) -> None:
        self._kept[piece] = body
        self._kept_bytes += piece.bytes_with(body)
        while self._kept_bytes > KEPT_BYTES:
            oldest, gone = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.bytes_with(gone)


def _frames(snapshot: Snapshot, ranges: Ranges) -> list[Frame]:
    """Return a frame for each range, or for each segment; they are valid while the snapshot is held."""
    if ranges is not None:
        return [_frame(snapshot, part) for part in ranges]
    return [
        Frame.of(group, segment.offset, array)
        for group, layout in enumerate(snapshot.layouts)
        for segment, array in zip(layout.segments, snapshot.arrays(group), strict=True)
    ]


def _frame(snapshot: Snapshot, part: FlatRange) -> Frame:
    stop = part.offset + part.count
    for segment, array in zip(snapshot.layouts[part.group].segments, snapshot.arrays(part.group), strict=True):
        if segment.offset <= part.offset and stop <= segment.offset + segment.count:
            return Frame.of(part.group, part.offset, array[part.offset - segment.offset : stop - segment.offset])
    raise ValueError(f"{part} lies in no segment")
