"""Protobuf's wire format: tags, lengths and varints, as `frames` and `row_frames` read and write them by hand.

See https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

TAG_14 = b"\x72"
"""Field 14, length-delimited."""
TAG_15 = b"\x7a"
"""Field 15, length-delimited."""
_MAX_VARINT = 10  # bytes


def walk_fields(data: bytes, position: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int | None, int]]:
    """Yields each field of a message: its number, the start of its tag, the start of its bytes, its end.

    The start of the bytes is None unless the field is length-delimited. Raises `DecodeError`, or `IndexError` if the
    message ends in the middle of a number.
    """
    if end is None:
        end = len(data)
    while position < end:
        start = position
        tag, position = read_varint(data, position)
        body = None
        match tag & 7:
            case 2:
                length, position = read_varint(data, position)
                body = position
                position += length
            case 0:
                _, position = read_varint(data, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case wire_type:
                raise DecodeError(f"wire type {wire_type} at byte {start}")
        if position > end:
            raise DecodeError(f"field {tag >> 3} at byte {start} ends after the message")
        yield tag >> 3, start, body, position


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a number; returns it and the position after it. Raises `DecodeError` or `IndexError`."""
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 7 * _MAX_VARINT, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError(f"a number at byte {position} is too long")


def varint(value: int) -> bytes:
    """Writes a number of up to 64 bits."""
    if value < 0x80:
        return value.to_bytes()
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
