"""Reads the segments that a server has left, and tells a torn tail from damage.

A record is torn if the server, or the power, ended while it was being written. Only records that were never synced can
be torn, so there is no later record that says otherwise: each one says how far the log was synced when it was written.
Whatever else cannot be read is damage.
"""

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optd_server.durability.log.framing import (
    ALIGNMENT,
    FORMAT,
    HEADER,
    RECORD_MAGIC,
    RecordHeader,
    SegmentHeader,
    aligned,
    checksum,
    read_record_header,
    read_segment_header,
)
from optd_server.durability.log.segment import SUFFIX
from optd_server.durability.problems import Damage, NewerFormat

_NAME = re.compile(rf"\d{{20}}-\d{{20}}{re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True)
class Record:
    """A record in a segment. `data` is a view of the file, valid until the next record is asked for."""

    event: int
    version: int
    data: memoryview
    path: Path
    offset: int


@dataclass(slots=True)
class Tail:
    """How a log ends."""

    event: int = 0
    """The number of its last event; 0 if it has none."""
    version: int = 0
    chain: int = 0
    """The checksum of its last header, for the segment that follows."""
    path: Path | None = None
    """Its last segment; None if it has none."""
    end: int = 0
    """Where the last record ends, in bytes."""
    torn_bytes: int = 0
    """How many bytes behind that were written, and cannot be read."""


def segment_paths(folder: Path) -> list[Path]:
    """Return the segments of a log in order."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if _NAME.fullmatch(path.name))


def first_event_of(path: Path) -> int:
    """Return the number of the first event of a segment, as its name has it."""
    return int(path.stem.partition("-")[2])


def chain_before(path: Path) -> int:
    """Return the checksum of the last header before a segment whose own header is good."""
    with path.open("rb") as file:
        found = read_segment_header(file.read(HEADER))
    assert found is not None
    return found[0].chain


def records(folder: Path, tail: Tail, *, after: int = 0) -> Iterator[Record]:
    """Yield the events of a log in order, from the first one after the event `after` on; `tail` is filled meanwhile.

    Raise `Damage` with the file and the offset, or `NewerFormat`. Earlier records are checked too, except those in
    segments that hold none after `after`.
    """
    paths = segment_paths(folder)
    for number, path in enumerate(paths):
        is_last = number == len(paths) - 1
        if not is_last and first_event_of(paths[number + 1]) <= after + 1:
            continue
        if tail.path is None and first_event_of(path) > after + 1:
            missing = f"events {after + 1} to {first_event_of(path) - 1} are missing"
            raise Damage(path, 0, f"it is the first segment, and {missing}")
        yield from segment_records(path, tail, after=after, is_last=is_last)


def segment_records(path: Path, tail: Tail, *, after: int = 0, is_last: bool) -> Iterator[Record]:
    """Yield the events of one segment as `records` does. It must follow where `tail` ends, unless that is new.

    Only the last segment may have a torn tail.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _header_of(path, file.read(HEADER), tail, is_last=is_last)
        if header is None:
            return
        # Not closed here: whoever holds a view of it, such as the traceback of an error, keeps it.
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    yield from _records(path, memoryview(mapped)[:size], header, tail, after, is_last=is_last)


def _header_of(path: Path, data: bytes, tail: Tail, *, is_last: bool) -> tuple[SegmentHeader, int] | None:
    found = read_segment_header(data)
    if found is None:
        if is_last and not any(data):
            # The server ended while it made the file, before any record could be written.
            tail.path, tail.end = path, 0
            return None
        raise Damage(path, 0, "the header of the segment is damaged")
    header, chain = found
    if header.format > FORMAT:
        raise NewerFormat(path, header.format, FORMAT)
    if tail.path is not None and (header.first_event, header.chain) != (tail.event + 1, tail.chain):
        raise Damage(path, 0, f"it does not follow {tail.path.name}: events after {tail.event} are missing")
    tail.path, tail.chain, tail.event, tail.version = path, chain, header.first_event - 1, header.first_version
    tail.end = HEADER
    return found


def _records(
    path: Path, view: memoryview, found: tuple[SegmentHeader, int], tail: Tail, after: int, *, is_last: bool
) -> Iterator[Record]:
    salt, offset = found[0].salt, HEADER
    while True:
        read = read_record_header(view[offset : offset + HEADER], salt)
        problem = _problem(view, offset, read, tail, salt)
        if problem:
            later = _synced_later(view, offset, salt)
            if not is_last and _written_bytes(view, offset):
                raise Damage(path, offset, problem)
            if later is not None and later > tail.event:
                raise Damage(path, offset, f"{problem}, and a later record says that event {later} was synced")
            tail.end = offset
            tail.torn_bytes = _written_bytes(view, offset)
            return
        assert read is not None
        header, own = read
        start = offset + HEADER
        offset = start + aligned(header.length)
        tail.chain, tail.end = own, offset
        if header.is_mark:
            continue
        tail.event, tail.version = header.event, header.version
        if header.event > after:
            data = view[start : start + header.length]
            yield Record(header.event, header.version, data, path, start - HEADER)
            data.release()


def _problem(view: memoryview, offset: int, read: tuple[RecordHeader, int] | None, tail: Tail, salt: int) -> str:
    """Return what is wrong with the record at an offset; empty if nothing is."""
    if read is None:
        return "there is no record here"
    header, _ = read
    if header.chain != tail.chain:
        return "the record does not belong behind the one before it"
    if header.event != tail.event + (not header.is_mark):
        return f"the record is event {header.event}, where {tail.event + 1} belongs"
    start = offset + HEADER
    if start + header.length > len(view):
        return f"the record has {header.length} bytes, and the file ends before"
    with view[start : start + header.length] as data:
        if checksum([data], salt) != header.checksum:
            return f"the checksum of event {header.event} is wrong"
    return ""


def _synced_later(view: memoryview, offset: int, salt: int) -> int | None:
    """Return the highest event that a record behind `offset` says to be synced; None if there is no such record."""
    highest: int | None = None
    data = view.obj
    assert isinstance(data, mmap.mmap)
    position = offset
    while True:
        position = data.find(RECORD_MAGIC, position + 1)
        if position < 0:
            return highest
        if position % ALIGNMENT == 0:
            found = read_record_header(view[position : position + HEADER], salt)
            if found is not None:
                highest = max(highest or 0, found[0].synced)


def _written_bytes(view: memoryview, offset: int) -> int:
    """Return how many bytes from an offset on were written: zeros at the end of a file were only reserved."""
    end = len(view)
    block = 1 << 16
    while end > offset:
        start = max(offset, end - block)
        written = view[start:end].tobytes().rstrip(b"\0")
        if written:
            return start + len(written) - offset
        end = start
    return 0
