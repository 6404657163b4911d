"""Messages with row frames, which hold some rows of a parameter.

Encoding copies the numbers once, decoding copies nothing. As in `optd_wire.frames` the bytes are ordinary protobuf: a
message of the contract has its row frames as `repeated RowFrame rows = 14`, and a `RowFrame` has its ids and its
payload last.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from optd_wire.encodings.base import Buffer, Encoding
from optd_wire.encodings.registry import BY_NUMBER
from optd_wire.errors import MalformedMessage, RowFrameLength, RowOutOfRange
from optd_wire.v1 import tensor_pb2
from optd_wire.wire_format import TAG_14, TAG_15, varint, walk_fields

M = TypeVar("M", bound=Message)
Ids = npt.NDArray[np.uint64]

ROWS = 14
# As for frames: bulk data needs far fewer.
MAX_ROW_FRAMES = 4096
_ID = np.dtype("<u8")
_IDS, _PAYLOAD = 14, 15


@dataclass(slots=True, eq=False)
class RowFrame:
    """Some rows of one parameter: their ids, and their elements, encoded row by row.

    Ids and payload of a decoded frame are views into the received message. `check` finds out whether they fit each
    other and the parameter.
    """

    group: int
    parameter: int
    count: int
    encoding: Encoding
    ids: Ids
    payload: Buffer
    sparse_dims: int = 0
    """The number of leading dimensions that count the rows; 0 means 1."""

    def check(self, name: str, rows: int, elements: int) -> None:
        """Checks the frame against the parameter `name`, which has `rows` rows of `elements` elements each.

        Raises `RowFrameLength`, `RowOutOfRange` or `MalformedMessage`.
        """
        length = len(self.payload) if isinstance(self.payload, bytes) else self.payload.nbytes
        if self.ids.size != self.count:
            raise RowFrameLength(
                parameter=name, count=self.count, what="ids", wanted=f"{8 * self.count} bytes", got=self.ids.nbytes
            )
        if not self.encoding.fits(self.count * elements, length):
            wanted = f"{self.count * elements} elements of {self.encoding.width}"
            raise RowFrameLength(parameter=name, count=self.count, what="payload", wanted=wanted, got=length)
        check_ids(self.ids, name, rows)
        self.encoding.check(self.payload, self.count * elements)

    def decode_into(self, out: npt.NDArray[Any]) -> None:
        """Writes the rows of a checked frame to the contiguous float array `out`, one after the other."""
        self.encoding.decode_into(self.payload, out.reshape(-1))


def check_ids(ids: npt.NDArray[Any], name: str, rows: int) -> None:
    """Raises `RowOutOfRange` unless all ids are rows of the parameter `name`, which has `rows` rows."""
    wrong = (ids < 0) | (ids >= rows)
    if wrong.any():
        raise RowOutOfRange(parameter=name, rows=rows, row=int(ids[wrong.argmax()]))


def ids_of(data: bytes | memoryview) -> Ids:
    """The row ids in the bytes of a message, not copied. Raises `MalformedMessage` if the last one is cut."""
    if len(data) % _ID.itemsize:
        raise MalformedMessage(message="RowFrame", problem=f"ids of {len(data)} bytes, which is no multiple of 8")
    return np.frombuffer(data, _ID)


def encode_rows(message: Message, frames: Iterable[RowFrame] = ()) -> bytes:
    """Writes `message`, which has no row frames yet, and the frames after it; copies the numbers once."""
    written: list[Any] = [message.SerializeToString()]
    for frame in frames:
        written += written_row_frame(frame)
    return b"".join(written)


def written_row_frame(frame: RowFrame) -> Sequence[Any]:
    """A row frame as a field of a message, in pieces; ids and numbers are not copied."""
    length = len(frame.payload) if isinstance(frame.payload, bytes) else frame.payload.nbytes
    plain = tensor_pb2.RowFrame(group=frame.group, parameter=frame.parameter, count=frame.count)
    head = plain.SerializeToString() + b"\x20" + varint(frame.encoding.number)
    if frame.sparse_dims:
        head += b"\x28" + varint(frame.sparse_dims)
    ids = np.ascontiguousarray(frame.ids, _ID)
    if ids.size:
        head += TAG_14 + varint(ids.nbytes)
    tail = TAG_15 + varint(length) if length else b""
    return [TAG_14 + varint(len(head) + ids.nbytes + len(tail) + length), head, ids, tail, frame.payload]


def decode_rows(message_class: type[M], data: bytes) -> tuple[M, list[RowFrame]]:
    """Reads a message and its row frames; raises `MalformedMessage`. Its time depends on the number of fields."""
    name = message_class.DESCRIPTOR.name
    view = memoryview(data)
    rest: list[memoryview] = []
    frames: list[RowFrame] = []
    try:
        for number, start, body, stop in walk_fields(data):
            if number == ROWS and body is not None:
                if len(frames) == MAX_ROW_FRAMES:
                    raise DecodeError(f"more than {MAX_ROW_FRAMES} row frames")
                frames.append(read_row_frame(data, view, body, stop))
            else:
                rest.append(view[start:stop])
        message = message_class.FromString(b"".join(rest))
    except IndexError:
        raise MalformedMessage(message=name, problem="it ends in the middle of a field") from None
    except DecodeError as error:
        raise MalformedMessage(message=name, problem=error) from error
    return message, frames


def read_row_frame(data: bytes, view: memoryview, position: int, stop: int) -> RowFrame:
    """Reads a row frame with its fields in any order, and with fields that this version does not know."""
    ids = payload = view[:0]
    rest: list[memoryview] = []
    for number, start, body, end in walk_fields(data, position, stop):
        if number == _IDS and body is not None:
            ids = view[body:end]
        elif number == _PAYLOAD and body is not None:
            payload = view[body:end]
        else:
            rest.append(view[start:end])
    header = tensor_pb2.RowFrame.FromString(b"".join(rest))
    encoding = BY_NUMBER.get(header.encoding)
    if encoding is None:
        raise MalformedMessage(message="RowFrame", problem=f"no encoding {header.encoding}")
    return RowFrame(header.group, header.parameter, header.count, encoding, ids_of(ids), payload, header.sparse_dims)


def table_shape(shape: Sequence[int], sparse_dims: int) -> tuple[int, int]:
    """A parameter's number of rows, and of elements in each, if `sparse_dims` leading dimensions count its rows."""
    dims = max(1, sparse_dims)
    return math.prod(shape[:dims]), math.prod(shape[dims:])
