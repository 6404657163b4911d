"""What a program does with files that has nothing else to do: append and sync, write one after the other, read."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.processes import pace

RESERVED = 64 << 20
"""Bytes that a file of `committers` has: as the largest segment of a log."""


class _Reserved:
    """A file whose bytes are reserved, and that begins anew when they are used up."""

    def __init__(self, path: Path, payload: bytes) -> None:
        self._payload = payload
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = RESERVED

    def append_and_sync(self) -> None:
        if self._end + len(self._payload) > RESERVED:
            os.ftruncate(self._descriptor, 0)
            os.posix_fallocate(self._descriptor, 0, RESERVED)
            self._end = 0
        self._end += os.pwrite(self._descriptor, self._payload, self._end)
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def committers(folder: Path, count: int, length: int) -> Iterator[Callable[[float], float]]:
    """So many threads, each of which appends to a file of its own and syncs it before it appends again.

    The function has them work for so many seconds, and returns how many appends all of them made a second.
    """
    files = [_Reserved(folder / f"plain-{number}", b"x" * length) for number in range(count)]
    try:
        with ThreadPoolExecutor(count) as pool:
            yield lambda seconds: sum(pool.map(lambda file: pace(file.append_and_sync, seconds), files))
    finally:
        for file in files:
            file.close()


def write_in_sequence(path: Path, payload: np.ndarray, times: int, sync_seconds: float) -> None:
    """Writes an array to a new file again and again, while another thread syncs the file at intervals. Ends synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    ended = threading.Event()

    def sync() -> None:
        while not ended.wait(sync_seconds):
            os.fdatasync(descriptor)

    syncer = threading.Thread(target=sync)
    syncer.start()
    try:
        for _ in range(times):
            rest = memoryview(payload).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        ended.set()
        syncer.join()
    os.fdatasync(descriptor)
    os.close(descriptor)


def read(paths: Sequence[Path]) -> None:
    """Reads whole files into new memory, one after the other."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            rest = memoryview(np.empty(path.stat().st_size, np.uint8))
            while rest:
                rest = rest[file.readinto(rest) :]
