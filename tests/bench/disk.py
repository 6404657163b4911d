"""The folder in which rows have data directories. It is on a disk: in memory a sync would cost nothing."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from bench.row import NotAvailable

IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder on a disk, removed at the end with all that is in it. Raises `NotAvailable` if there is no disk."""
    with tempfile.TemporaryDirectory(prefix="optd-bench-", dir=_parent()) as made:
        yield Path(made)


def fact() -> str:
    """The file system that the rows of this run write to."""
    try:
        parent = _parent()
    except NotAvailable as problem:
        return str(problem)
    kind, device = _file_system(parent)
    return f"{kind} on {device}, for rows that write to {parent}"


def _parent() -> Path:
    """The folder for temporary files, or the working directory if the former is in memory."""
    candidates = [Path(tempfile.gettempdir()), Path.cwd()]
    for candidate in candidates:
        if _file_system(candidate)[0] not in IN_MEMORY:
            return candidate
    raise NotAvailable(f"no folder on a disk: {' and '.join(map(str, candidates))} are in memory; set TMPDIR")


def _file_system(path: Path) -> tuple[str, str]:
    mounts = {Path(each.mountpoint): each for each in psutil.disk_partitions(all=True)}
    found = next(mounts[each] for each in (path.resolve(), *path.resolve().parents) if each in mounts)
    return found.fstype, found.device


def forget(paths: Sequence[Path]) -> None:
    """Have the system drop files that are synced from its page cache, so that they are read from the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def bytes_in(path: Path) -> int:
    """How many bytes of disk the files under a folder take. Files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                status = (Path(parent) / name).stat()
                total += status.st_blocks * 512 // status.st_nlink  # snapshots share files
    return total


def written_bytes(pid: int) -> int:
    """How many bytes a process has had the system write to disks. Raises `NotAvailable` if that is not told."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError as problem:
        raise NotAvailable(f"/proc/{pid}/io: {problem.strerror}") from None
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
