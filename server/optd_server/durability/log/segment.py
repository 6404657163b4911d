"""One segment of a log that is being written."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from optd_server.durability.files import sync_folder, write_all
from optd_server.durability.log.framing import (
    HEADER,
    RecordHeader,
    SegmentHeader,
    aligned,
    checksum,
    record_header,
    segment_header,
)

SUFFIX = ".log"
Parts = Sequence[bytes | memoryview]
"""The bytes of an event, in parts that lie wherever they lie."""
_PADDING = b"\0" * 8


def length_of(parts: Parts) -> int:
    """Return how many bytes all parts have."""
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)


def segment_name(version: int, event: int) -> str:
    """Return the name of a segment: the version before its first record, and the number of that record."""
    return f"{version:020d}-{event:020d}{SUFFIX}"


class Segment:
    """A file of records, to be written by one thread at a time. Its bytes are reserved when it is made."""

    def __init__(self, folder: Path, *, first_event: int, version: int, chain: int, size: int) -> None:
        """Make the file, which is durable then; raise OSError, and leave nothing behind."""
        self.path = folder / segment_name(version, first_event)
        self.first_event, self.follows = first_event, chain
        self.size = size
        self.end = HEADER
        """Where the next record begins."""
        self._salt = secrets.randbits(64)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(self.path, flags, 0o600)
        try:
            os.posix_fallocate(self.descriptor, 0, size)
            header, self.chain = segment_header(SegmentHeader(self._salt, first_event, version, chain))
            write_all(self.descriptor, [header], 0)
            os.fsync(self.descriptor)
            sync_folder(folder)
        except BaseException:
            os.close(self.descriptor)
            self.path.unlink(missing_ok=True)
            raise
        self._before = (self.end, self.chain)
        """Where the last event begins, and the chain before it."""
        self._marks = 0
        """How many marks follow it."""

    def has_room(self, length: int) -> bool:
        """Whether an event of this many bytes fits, with a header for what may follow it."""
        return self.end + HEADER + aligned(length) + HEADER <= self.size

    def append(self, parts: Parts, *, event: int, version: int, synced: int) -> None:
        """Write a record; raise OSError, and then the segment ends where it ended before."""
        length = length_of(parts)
        before = (self.end, self.chain)
        self._put(
            RecordHeader(event, version, length, synced, checksum(parts, self._salt), self.chain),
            [*parts, _PADDING[: aligned(length) - length]],
        )
        self._before, self._marks = before, 0

    def mark(self, *, event: int, version: int, synced: int) -> None:
        """Write a mark that the log is synced up to the event `synced`; raise OSError."""
        self._put(RecordHeader(event, version, 0, synced, checksum((), self._salt), self.chain, is_mark=True), ())
        self._marks += 1

    def _put(self, header: RecordHeader, parts: Parts) -> None:
        written, chain = record_header(header, self._salt)
        end = write_all(self.descriptor, [written, *parts], self.end)
        self.end, self.chain = end, chain

    def take_back(self) -> None:
        """Remove the last event, which could not be applied, and the marks behind it, for good; raise OSError."""
        marks = self._marks * HEADER
        write_all(self.descriptor, [b"\0" * marks], self.end - marks)
        self.end, self.chain = self._before
        self._marks = 0
        write_all(self.descriptor, [b"\0" * HEADER], self.end)
        os.fdatasync(self.descriptor)  # after a power cut, too, nobody may try it again

    def sync(self) -> None:
        """Make what was written survive a power cut; raise OSError, after which nobody may rely on the file."""
        os.fdatasync(self.descriptor)

    def remove(self) -> None:
        """Close a segment that holds no event, and remove it; raise OSError."""
        os.close(self.descriptor)
        self.path.unlink()

    def finish(self) -> None:
        """Give back the bytes that were reserved and not used, sync and close; raise OSError."""
        try:
            os.ftruncate(self.descriptor, self.end)
            os.fsync(self.descriptor)
        finally:
            os.close(self.descriptor)
