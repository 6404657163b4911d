"""Memory for flat buffers: private to this process, or shared with workers of this host.

Shared memory is a memfd. It has no name that another process could guess. Its size is sealed, so that nobody can
shrink it under a reader. The system frees it when the last process that holds it ends, even if that process is killed.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes: a cache line, and enough for every vector unit."""

# Forbids every later write and writable mapping. In Linux since 5.1, in Python's fcntl since 3.13.
_F_SEAL_FUTURE_WRITE = 0x10
_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

_numbers = count(1)


class Region:
    """Zeroed memory of this process at an aligned address. It is freed with the last array in it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory: mmap.mmap = self._map(max(size, 1))

    def _map(self, size: int) -> mmap.mmap:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Huge pages make address translation cheaper. If the system has none, the advice has no effect.
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= 1 << 22:
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def array(self, dtype: np.dtype[Any], offset: int, elements: int) -> npt.NDArray[Any]:
        """Return a writable view of `elements` numbers that begin at byte `offset`."""
        return np.frombuffer(self._memory, dtype, elements, offset)


class SharedRegion(Region):
    """A region that other processes can map through `descriptor`; its size never changes.

    If `writers` is false, no other process can ever write to it.
    """

    LEAST = ALIGNMENT
    """The smallest size in bytes: an empty mapping is impossible, and a token must fit."""

    def __init__(self, size: int, *, writers: bool) -> None:
        self.number = next(_numbers)
        """A number that no other shared region of this process has."""
        self._writers = writers
        super().__init__(max(size, self.LEAST))

    def _map(self, size: int) -> mmap.mmap:
        self.descriptor = os.memfd_create("optd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size)
        memory = mmap.mmap(self.descriptor, size)
        seals = _FIXED_SIZE | (0 if self._writers else _F_SEAL_FUTURE_WRITE)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        return memory


Allocate = Callable[[int], Region]
"""Returns a region of at least the given number of bytes; raises `OSError` if there is no memory for it."""


def readable_by_workers(size: int) -> Region:
    """Allocate memory that this process writes and workers may read."""
    return SharedRegion(size, writers=False)


def writable_by_workers(size: int) -> Region:
    """Allocate memory that a worker writes and this process reads."""
    return SharedRegion(size, writers=True)
