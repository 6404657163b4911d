"""Send rows of parameters to readers, gathered and encoded one message at a time."""

import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

import numpy as np
from google.protobuf.message import Message

from optd_server.engine.offload import Offload
from optd_server.engine.readers.delta import ChangedRows
from optd_server.engine.readers.selection import SelectedRows
from optd_server.engine.reading import Reading
from optd_server.rpc.batches import BATCH_BYTES
from optd_server.store.flat import Array
from optd_server.store.rows import Ids as RowNumbers
from optd_server.store.versions import Snapshot
from optd_wire.dtypes import DTYPES
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import encoding_for
from optd_wire.errors import TooSlow
from optd_wire.messages import to_message
from optd_wire.row_frames import Ids, RowFrame, encode_rows, written_row_frame
from optd_wire.v1.training_service_pb2 import PullRowsResponse
from optd_wire.values import JobVersion

# A row takes its id besides its numbers.
_ID_BYTES = 8


class RowMessages:
    """Encodes rows for the readers of a server. It holds at most one message in memory for each reader."""

    def __init__(self, offload: Offload, patience_seconds: float) -> None:
        self._offload = offload
        self._patience = patience_seconds

    async def answer(
        self,
        reading: Reading,
        selected: SelectedRows,
        encoding: Encoding | None,
        version: JobVersion,
        gathered: Array | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield the messages of an answer, with the version in the first one.

        `encoding` is a lossy one, or None for exact numbers. `gathered` are rows of an average, sent instead of those
        of the snapshot. Raises `TooSlow` if the reader is slow while a step waits for the memory that it holds, and
        `EncodingOverflow` if a number does not fit the encoding.
        """
        began, snapshot = time.monotonic(), reading.snapshot
        rows = selected.of(snapshot)
        chosen = encoding_for(rows.dtype, encoding)
        step = max(1, BATCH_BYTES // (chosen.bytes_of(selected.columns) + _ID_BYTES))
        first = PullRowsResponse(version=to_message(version))
        for start in range(0, max(1, selected.ids.size), step):
            if reading.is_in_the_way and time.monotonic() - began > self._patience:
                raise TooSlow(version=snapshot.version.version, seconds=f"{self._patience:g}")
            ids = selected.ids[start : start + step]
            head = first if start == 0 else PullRowsResponse()
            taken = None if gathered is None else gathered[start : start + step]
            work = partial(_encoded, head, selected, rows, ids, taken, chosen)
            yield await self._offload.copy(ids.size * selected.columns, work)

    async def changes(
        self,
        reading: Reading,
        rows: Sequence[ChangedRows],
        encoding: Encoding | None,
        first: Message,
        last: Message,
    ) -> AsyncIterator[bytes]:
        """Yield the messages of an answer of changed rows, from the fields of `first` to those of `last`.

        A small answer is one message. The encoding and the errors are those of `answer`.
        """
        began, snapshot = time.monotonic(), reading.snapshot
        waiting = first.SerializeToString()
        for each in rows:
            chosen = encoding_for(DTYPES[each.place.dtype], encoding)
            step = max(1, BATCH_BYTES // (chosen.bytes_of(each.place.columns) + _ID_BYTES))
            for start in range(0, len(each.ids), step):
                if reading.is_in_the_way and time.monotonic() - began > self._patience:
                    raise TooSlow(version=snapshot.version.version, seconds=f"{self._patience:g}")
                ids = each.ids[start : start + step]
                work = partial(_changed, snapshot, each, ids, chosen)
                # In protobuf, the bytes of two messages in a row are the bytes of both merged.
                waiting += await self._offload.copy(ids.size * each.place.columns, work)
                if len(waiting) > BATCH_BYTES // 2:
                    yield waiting
                    waiting = b""
        yield waiting + last.SerializeToString()


def _changed(snapshot: Snapshot, rows: ChangedRows, ids: RowNumbers, encoding: Encoding) -> bytes:
    payload = encoding.encode(rows.of(snapshot, ids).reshape(-1))
    place, numbers = rows.place, ids.astype(np.uint64)
    dims = 0 if place.sparse_dims == 1 else place.sparse_dims
    frame = RowFrame(place.group, place.member, ids.size, encoding, numbers, payload, dims)
    return b"".join(written_row_frame(frame))


def _encoded(
    head: PullRowsResponse, selected: SelectedRows, rows: Array, ids: Ids, gathered: Array | None, encoding: Encoding
) -> bytes:
    payload = encoding.encode((rows[ids] if gathered is None else gathered).reshape(-1))
    return encode_rows(head, [RowFrame(selected.group, selected.parameter, ids.size, encoding, ids, payload)])
