"""The form of a log's records. Pure: bytes in, bytes out.

A segment begins with a header of 64 bytes, and so does each of its records; both begin at a multiple of 8 bytes. All
numbers are little-endian, all checksums are xxh3 of 64 bits, seeded with the salt of the segment. The salt is drawn at
random, so nothing that an older file left on the disk can pass for a record of this one. Each record also has the
checksum of the header before it: records cannot be swapped, left out or taken from another segment.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

FORMAT = 1
"""The version of the form. A reader refuses newer ones."""
HEADER = 64
ALIGNMENT = 8
SEGMENT_MAGIC = b"OPTDLOG\n"
RECORD_MAGIC = b"rec\n"
_SEGMENT = struct.Struct("<8sIIQQQQ")
_RECORD = struct.Struct("<4sIQQQQQQ")
_CHECKSUM = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The beginning of a segment."""

    salt: int
    first_event: int
    """The number of its first record."""
    first_version: int
    """The version of the job before that record."""
    chain: int
    """The checksum of the last record's header in the segment before it; 0 if there is none."""
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The beginning of a record."""

    event: int
    """Its number: events of a job are counted from 1."""
    version: int
    """The version of the job after the event."""
    length: int
    """The bytes of the event."""
    synced: int
    """The last event that was known to be synced when this record was written."""
    checksum: int
    """The checksum of the event."""
    chain: int
    """The checksum of the header before it."""
    is_mark: bool = False
    """Whether the record holds no event, and only says how far the log is synced."""


def aligned(size: int) -> int:
    """Return the bytes that `size` bytes take with their padding."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def checksum(parts: Iterable[bytes | memoryview], salt: int) -> int:
    """Return the checksum of bytes that come in parts."""
    digest = xxhash.xxh3_64(seed=salt)
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def _sealed(body: bytes, salt: int) -> tuple[bytes, int]:
    own = xxhash.xxh3_64_intdigest(body, salt)
    return body + _CHECKSUM.pack(own), own


def segment_header(header: SegmentHeader) -> tuple[bytes, int]:
    """Return the bytes of a segment's header, and its checksum, which the first record has as its chain."""
    body = _SEGMENT.pack(
        SEGMENT_MAGIC, header.format, 0, header.salt, header.first_event, header.first_version, header.chain
    )
    sealed, own = _sealed(body, header.salt)
    return sealed.ljust(HEADER, b"\0"), own


def read_segment_header(data: bytes) -> tuple[SegmentHeader, int] | None:
    """Return the header of a segment and its checksum; None if these bytes are none."""
    if len(data) < HEADER:
        return None
    magic, format_, _, salt, first_event, first_version, chain = _SEGMENT.unpack_from(data)
    (stored,) = _CHECKSUM.unpack_from(data, _SEGMENT.size)
    if magic != SEGMENT_MAGIC or stored != xxhash.xxh3_64_intdigest(data[: _SEGMENT.size], salt):
        return None
    return SegmentHeader(salt, first_event, first_version, chain, format_), stored


def record_header(header: RecordHeader, salt: int) -> tuple[bytes, int]:
    """Return the bytes of a record's header, and its checksum, which the next record has as its chain."""
    body = _RECORD.pack(
        RECORD_MAGIC,
        header.is_mark,
        header.event,
        header.version,
        header.length,
        header.synced,
        header.checksum,
        header.chain,
    )
    return _sealed(body, salt)


def read_record_header(data: bytes | memoryview, salt: int) -> tuple[RecordHeader, int] | None:
    """Return the header of a record and its checksum; None if these bytes are none of this segment."""
    if len(data) < HEADER or data[:4] != RECORD_MAGIC:
        return None
    _, kind, event, version, length, synced, own, chain = _RECORD.unpack_from(data)
    (stored,) = _CHECKSUM.unpack_from(data, _RECORD.size)
    if stored != xxhash.xxh3_64_intdigest(data[: _RECORD.size], salt):
        return None
    return RecordHeader(event, version, length, synced, own, chain, bool(kind)), stored
