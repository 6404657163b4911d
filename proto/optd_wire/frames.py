"""Messages with frames: encoding copies the numbers once, decoding copies nothing.

The bytes are ordinary protobuf (https://protobuf.dev/programming-guides/encoding/). A message of the contract that
carries frames has them as `repeated Frame frames = 15`, its last field, and a `Frame` has its payload last. So plain
stubs read what this file writes; and this file reads what they write, with the fields in any order.

Messages of gradients also carry row frames (`optd_wire.row_frames`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from optd_wire.encodings.base import Buffer, Encoding, bytes_in
from optd_wire.encodings.registry import BY_NUMBER, exact_for
from optd_wire.errors import MalformedMessage
from optd_wire.row_frames import MAX_ROW_FRAMES, ROWS, RowFrame, read_row_frame, written_row_frame
from optd_wire.v1 import tensor_pb2
from optd_wire.wire_format import TAG_15, read_varint, varint, walk_fields

M = TypeVar("M", bound=Message)

FRAMES = 15
# A frame of a few bytes costs its reader much more than its sender. Bulk data needs far fewer frames than this.
MAX_FRAMES = 4096
_PAYLOAD = 15


@dataclass(slots=True, eq=False)
class Frame:
    """A range of a group's flat buffer, with its numbers encoded.

    The payload of a decoded frame is a view into the received message. Its length fits `count`; `check` and
    `decode_into` find out whether its content is valid.
    """

    group: int
    offset: int
    count: int
    encoding: Encoding
    payload: Buffer
    field: str = ""

    @classmethod
    def of(cls, group: int, offset: int, values: npt.NDArray[Any], field: str = "") -> "Frame":
        """A frame of a contiguous one-dimensional array, in the encoding that is exact for it. Does not copy."""
        return cls(group, offset, values.size, exact_for(values.dtype), bytes_in(values), field)

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.offset + self.count

    @property
    def values(self) -> npt.NDArray[Any]:
        """The payload as an array, not copied; read-only for a decoded frame. Raises `TypeError` if it is no array."""
        dtype = self.encoding.dtype
        if dtype is None:
            raise TypeError(f"the payload of a frame in {self.encoding.name} is no array: use decoded()")
        return np.frombuffer(self.payload, dtype)

    def decoded(self, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """The numbers in `dtype`: `values` if they have it, else a new array. Raises `MalformedMessage`."""
        if self.encoding.keeps(np.dtype(dtype)):
            return self.values
        out = np.empty(self.count, dtype)
        self.encoding.decode_into(self.payload, out)
        return out

    def check(self) -> None:
        """Raises `MalformedMessage` if the payload cannot be decoded."""
        self.encoding.check(self.payload, self.count)

    def decode_into(self, out: npt.NDArray[Any]) -> None:
        """Writes the numbers to the contiguous float array `out` of `count` elements. Raises `MalformedMessage`."""
        self.encoding.decode_into(self.payload, out)

    def pieces(self) -> Sequence[Buffer]:
        """The payload in pieces, for `encode`."""
        return (self.payload,)


@dataclass(slots=True, eq=False)
class GatheredFrame:
    """A frame to send, whose numbers are those of several contiguous arrays of one dtype, one after the other.

    `encode` reads the arrays, anew on each call.
    """

    group: int
    offset: int
    count: int
    encoding: Encoding
    arrays: Sequence[npt.NDArray[Any]]
    field: str = ""

    def pieces(self) -> Sequence[Buffer]:
        """The payload in pieces, for `encode`: the arrays themselves, or one piece that they were encoded to."""
        if all(self.encoding.keeps(array.dtype) for array in self.arrays):
            return [bytes_in(array) for array in self.arrays]
        whole = self.arrays[0] if len(self.arrays) == 1 else np.concatenate(self.arrays)
        return (self.encoding.encode(whole),)


Outgoing = Frame | GatheredFrame | RowFrame
Received = Frame | RowFrame


# Writing


def encode(message: Message, frames: Iterable[Outgoing] = (), *, deterministic: bool = False) -> bytes:
    """Writes `message`, which has no frames yet, and the frames after it.

    Copies the numbers once, into the result. With `deterministic`, maps are written in the order of their keys: equal
    messages give equal bytes. Raises `EncodingOverflow`.
    """
    parts: list[Any] = [*encode_in_parts(message, frames, deterministic=deterministic)]
    return b"".join(parts)


def encode_in_parts(message: Message, frames: Iterable[Outgoing] = (), *, deterministic: bool = False) -> list[Buffer]:
    """As `encode`, but returns the bytes in parts. Those of numbers lie where the numbers lie; nothing is copied."""
    written: list[Any] = [message.SerializeToString(deterministic=deterministic)]
    for frame in frames:
        if isinstance(frame, RowFrame):
            written += written_row_frame(frame)
            continue
        pieces = frame.pieces()
        length = 0
        for piece in pieces:
            length += len(piece) if isinstance(piece, bytes) else piece.nbytes
        written.append(_header(frame.group, frame.offset, frame.count, frame.encoding.number, frame.field, length))
        written.extend(pieces)
    return written


# A job has the same ranges in every step.
@lru_cache(maxsize=1 << 13)
def _header(group: int, offset: int, count: int, encoding: int, field: str, length: int) -> bytes:
    """All that precedes the payload: tag and length of the frame, its other fields, tag and length of the payload."""
    written = b""
    if group:
        written += b"\x08" + varint(group)
    if offset:
        written += b"\x10" + varint(offset)
    if count:
        written += b"\x18" + varint(count)
    written += b"\x20" + varint(encoding)
    if field:
        name = field.encode()
        written += b"\x2a" + varint(len(name)) + name
    # An empty payload is left out, as protobuf leaves out every field that has its default.
    if length:
        written += TAG_15 + varint(length)
    return TAG_15 + varint(len(written) + length) + written


# Reading


def decode(message_class: type[M], data: bytes) -> tuple[M, list[Frame]]:
    """Reads a message and its frames; raises `MalformedMessage` or `FrameLength`.

    The time it takes depends on the number of fields, not on the size of payloads.
    """
    message, frames, _ = _decode(message_class, data, most_rows=None)
    return message, frames


def decode_received(message_class: type[M], data: bytes) -> tuple[M, list[Received]]:
    """As `decode`, for a message that may also have row frames, which come last in the list."""
    message, frames, rows = _decode(message_class, data, most_rows=MAX_ROW_FRAMES)
    return message, [*frames, *rows]


def _decode(message_class: type[M], data: bytes, *, most_rows: int | None) -> tuple[M, list[Frame], list[RowFrame]]:
    """A message, its frames and its row frames; with `most_rows` None, row frames stay in the message."""
    name = message_class.DESCRIPTOR.name
    view = memoryview(data)
    rest: list[memoryview] = []
    frames: list[Frame] = []
    rows: list[RowFrame] = []
    try:
        for number, start, body, stop in walk_fields(data):
            if number == FRAMES and body is not None:
                if len(frames) == MAX_FRAMES:
                    raise DecodeError(f"more than {MAX_FRAMES} frames")
                frames.append(_canonical_frame(data, view, body, stop) or _any_frame(data, view, body, stop))
            elif number == ROWS and body is not None and most_rows is not None:
                if len(rows) == most_rows:
                    raise DecodeError(f"more than {most_rows} row frames")
                rows.append(read_row_frame(data, view, body, stop))
            else:
                rest.append(view[start:stop])
        message = message_class.FromString(b"".join(rest))
    except IndexError:
        raise MalformedMessage(message=name, problem="it ends in the middle of a field") from None
    except DecodeError as error:
        raise MalformedMessage(message=name, problem=error) from error
    return message, frames, rows


def _canonical_frame(data: bytes, view: memoryview, position: int, stop: int) -> Frame | None:
    """Reads a frame whose fields are in the order of their numbers, as writers normally send it; else returns None."""
    group = offset = count = number = length = 0
    field = ""
    tag = data[position] if position < stop else 0
    if tag == 0x08:
        group, position = read_varint(data, position + 1)
        tag = data[position] if position < stop else 0
    if tag == 0x10:
        offset, position = read_varint(data, position + 1)
        tag = data[position] if position < stop else 0
    if tag == 0x18:
        count, position = read_varint(data, position + 1)
        tag = data[position] if position < stop else 0
    if tag == 0x20:
        number, position = read_varint(data, position + 1)
        tag = data[position] if position < stop else 0
    if tag == 0x2A:
        length, position = read_varint(data, position + 1)
        try:
            field = str(view[position : position + length], "utf-8")
        except UnicodeDecodeError:
            return None
        position += length
        tag = data[position] if position < stop else 0
    length = 0
    if tag == 0x7A:
        length, position = read_varint(data, position + 1)
    # Too wide a number is left to protobuf, which cuts it to its width.
    if position + length != stop or group >> 32 or offset >> 64 or count >> 64:
        return None
    encoding = BY_NUMBER.get(number)
    if encoding is None:
        return None
    encoding.check_length(group, count, length)
    return Frame(group, offset, count, encoding, view[position:stop], field)


def _any_frame(data: bytes, view: memoryview, position: int, stop: int) -> Frame:
    """Reads a frame with its fields in any order, and with fields that this version does not know."""
    payload = view[:0]
    rest: list[memoryview] = []
    for number, start, body, end in walk_fields(data, position, stop):
        if number == _PAYLOAD and body is not None:
            payload = view[body:end]
        else:
            rest.append(view[start:end])
    header = tensor_pb2.Frame.FromString(b"".join(rest))
    encoding = BY_NUMBER.get(header.encoding)
    if encoding is None:
        raise MalformedMessage(message="Frame", problem=f"no encoding {header.encoding}")
    encoding.check_length(header.group, header.count, len(payload))
    return Frame(header.group, header.offset, header.count, encoding, payload, header.field)
