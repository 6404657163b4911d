"""Memory for flat buffers: private to this process, or shared with workers of this host.

Shared memory is a memfd: it has no name that another process could guess, its size is sealed, so that nobody can pull
it away from under a reader, and it is gone as soon as the last process that has it is gone, however that ends.
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
"""Bytes; what vector units and caches like best."""

# In Linux since 5.1, in Python's fcntl since 3.13: no mapping or write after this one may change the memory.
_F_SEAL_FUTURE_WRITE = 0x10
_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

_numbers = count(1)


class Region:
    """Zeroed bytes at an aligned address. Freed when the last array in it is gone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory: mmap.mmap = self._map(max(size, 1))

    def _map(self, size: int) -> mmap.mmap:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Large pages spare address translation; where the system has none to give, it says nothing.
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= 1 << 22:
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def array(self, dtype: np.dtype[Any], offset: int, elements: int) -> npt.NDArray[Any]:
        """A writable view of `elements` numbers that begin at byte `offset`."""
        return np.frombuffer(self._memory, dtype, elements, offset)


class SharedRegion(Region):
    """A region that other processes can map through `descriptor`; its size never changes.

    With `writers=False` this process is the only one that can write to it, now and later.
    """

    LEAST = ALIGNMENT
    """Bytes that it has at least: nobody can map nothing, and there is room for a token."""

    def __init__(self, size: int, *, writers: bool) -> None:
        self.number = next(_numbers)
        """Tells the shared regions of this process apart."""
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
"""Gives a region of so many bytes."""


def published(size: int) -> Region:
    """Memory that this process writes and others may read."""
    return SharedRegion(size, writers=False)


def received(size: int) -> Region:
    """Memory that another process writes and this one reads."""
    return SharedRegion(size, writers=True)
