"""Messages with frames: encoded with one copy of the numbers, decoded without one.

Works on the ordinary protobuf wire format (https://protobuf.dev/programming-guides/encoding/): every message of the
contract that carries frames has them as `repeated Frame frames = 15`, its last field, and a `Frame` keeps its payload
last. Plain stubs read what is written here, and what they write is read here, in whatever order the fields come.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from optd_wire.dtypes import dtype_of_encoding, encoding_of
from optd_wire.errors import FrameLength, MalformedMessage
from optd_wire.v1 import tensor_pb2

M = TypeVar("M", bound=Message)
Buffer = bytes | memoryview

FRAMES = 15
# A frame of a few bytes costs a reader much more than it costs a sender; the bound is far above what bulk needs.
MAX_FRAMES = 4096
_PAYLOAD = 15
_LENGTH_DELIMITED = 2
_TAG_15 = bytes([FRAMES << 3 | _LENGTH_DELIMITED])
_MAX_VARINT = 10


@dataclass(frozen=True, slots=True)
class Frame:
    """A range of a group's flat buffer with its numbers.

    `values` is one-dimensional and its dtype is the dtype of the range. Of a decoded frame it is a read-only view
    into the received message.
    """

    group: int
    offset: int
    values: npt.NDArray[Any]
    field: str = ""

    @property
    def stop(self) -> int:
        """The element behind the last one."""
        return self.offset + self.values.size


GatheredFrame = tuple[Frame, list[npt.NDArray[Any]]]
"""A frame whose numbers lie in arrays that follow one another; its own `values` are empty, and tell the dtype."""


def encode(message: Message, frames: Iterable[Frame] = ()) -> bytes:
    """Writes `message` (without frames of its own) and the frames behind it.

    The frames' values must be contiguous; they are copied once, into the result.
    """
    return b"".join(_pieces(message, ((frame, [frame.values]) for frame in frames)))


def encode_gathered(message: Message, frames: Iterable[GatheredFrame]) -> bytes:
    """As `encode`, with the numbers of each frame taken from contiguous arrays that follow one another."""
    return b"".join(_pieces(message, frames))


def _pieces(message: Message, frames: Iterable[GatheredFrame]) -> Iterator[Buffer]:
    yield message.SerializeToString()
    for frame, arrays in frames:
        count = sum(array.size for array in arrays)
        length = count * frame.values.dtype.itemsize
        header = tensor_pb2.Frame(
            group=frame.group,
            offset=frame.offset,
            count=count,
            encoding=encoding_of(frame.values.dtype),
            field=frame.field,
        ).SerializeToString()
        payload_header = _TAG_15 + _varint(length)
        yield _TAG_15 + _varint(len(header) + len(payload_header) + length) + header + payload_header
        for array in arrays:
            # A zero-sized view cannot be cast; it has nothing to say either.
            if array.size:
                yield memoryview(array).cast("B")  # type: ignore[arg-type]


def decode(message_class: type[M], data: bytes) -> tuple[M, list[Frame]]:
    """Reads a message and its frames; raises `MalformedMessage` or `FrameLength`."""
    name = message_class.DESCRIPTOR.name
    view = memoryview(data)
    rest: list[Buffer] = []
    frames: list[Frame] = []
    try:
        for number, start, body, stop in _fields(view):
            if number == FRAMES and body is not None:
                if len(frames) == MAX_FRAMES:
                    raise DecodeError(f"more than {MAX_FRAMES} frames")
                frames.append(_decode_frame(view[body:stop]))
            else:
                rest.append(view[start:stop])
        message = message_class.FromString(b"".join(rest))
    except IndexError:
        raise MalformedMessage(message=name, problem="it ends in the middle of a field") from None
    except DecodeError as error:
        raise MalformedMessage(message=name, problem=error) from error
    return message, frames


def _decode_frame(view: memoryview) -> Frame:
    payload = view[:0]
    rest: list[Buffer] = []
    for number, start, body, stop in _fields(view):
        if number == _PAYLOAD and body is not None:
            payload = view[body:stop]
        else:
            rest.append(view[start:stop])
    header = tensor_pb2.Frame.FromString(b"".join(rest))
    dtype = dtype_of_encoding(header.encoding)
    if dtype is None:
        raise MalformedMessage(message="Frame", problem=f"no encoding {header.encoding}")
    if header.count * dtype.itemsize != len(payload):
        raise FrameLength(group=header.group, count=header.count, width=dtype.itemsize, got=len(payload))
    return Frame(header.group, header.offset, np.frombuffer(payload, dtype), header.field)


def _fields(view: memoryview) -> Iterator[tuple[int, int, int | None, int]]:
    """Walks a message: (field number, start of its tag, start of its bytes if length-delimited, end)."""
    position = 0
    end = len(view)
    while position < end:
        start = position
        tag, position = _read_varint(view, position)
        body = None
        match tag & 7:
            case 0:
                _, position = _read_varint(view, position)
            case 1:
                position += 8
            case 2:
                length, position = _read_varint(view, position)
                body = position
                position += length
            case 5:
                position += 4
            case wire_type:
                raise DecodeError(f"wire type {wire_type} at byte {start}")
        if position > end:
            raise DecodeError(f"field {tag >> 3} at byte {start} ends behind the message")
        yield tag >> 3, start, body, position


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError(f"a number at byte {position} is too long")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
