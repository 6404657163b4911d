"""Files that survive a power cut: written beside, synced, renamed, and their folder synced."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from optd_wire.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_PARTS = 512
"""How many parts one system call takes; Linux allows 1024."""


def is_full(problem: OSError) -> bool:
    """Return whether the disk has no room, which may change. Any other error means that the disk cannot be trusted."""
    return problem.errno in _FULL


def disk_full(problem: OSError, folder: Path) -> DiskFull:
    """Return the error for whoever wanted something written."""
    return DiskFull(folder=str(folder), problem=(problem.strerror or str(problem)).lower())


def write_all(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
    """Write all parts, one after the other, from `offset` on; return where they end. Raise OSError.

    A write that is cut short goes on behind what it has written.
    """
    rest = [view.cast("B") for view in (memoryview(part) for part in parts) if view.nbytes]
    while rest:
        written = os.pwritev(descriptor, rest[:_MOST_PARTS], offset)
        if not written:
            raise OSError(errno.EIO, "the disk wrote nothing")
        offset += written
        done = 0
        while done < len(rest) and written >= rest[done].nbytes:
            written -= rest[done].nbytes
            done += 1
        rest = rest[done:]
        if written:
            rest[0] = rest[0][written:]
    return offset


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; raise OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder that survives a power cut, unless there is one; raise OSError."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700)
        sync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Put a file in place as a whole: whoever reads it sees the old one or the new one. Raise OSError."""
    scratch = path.with_name(f".{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, [data], 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    scratch.replace(path)
    sync_folder(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it: after a power cut it is there whole, or not at all. Raise OSError."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.replace(doomed)
    sync_folder(folder.parent)
    shutil.rmtree(doomed)
