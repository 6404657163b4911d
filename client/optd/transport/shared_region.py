"""Regions of shared memory as a worker maps them.

A region of weights is mapped privately: this process sees what the server writes, and nobody else sees what this one
writes. A page that this process writes to becomes its own copy, which no longer shows what the server writes. `refresh`
drops such copies; `keep` makes them of all pages.
"""

import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

# Since Linux 5.14: has the effect of a write to each page, and changes no content.
_POPULATE_WRITE = 23
# The 64 bits that /proc/self/pagemap has for each page (https://docs.kernel.org/admin-guide/mm/pagemap.html).
_PRESENT, _SWAPPED, _OF_FILE = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1 << 61)


class Region:
    """A mapped region; it closes its descriptor. Stays mapped while an array in it is referred to."""

    def __init__(self, descriptor: int, size: int, *, shared: bool) -> None:
        try:
            self._memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
        finally:
            os.close(descriptor)
        self.size = size
        self.address: int = np.frombuffer(self._memory, np.uint8).__array_interface__["data"][0]

    def array(self, dtype: np.dtype[Any], byte_offset: int, count: int) -> npt.NDArray[Any]:
        """A writable view."""
        return np.frombuffer(self._memory, dtype, count, byte_offset)

    def touch(self) -> None:
        """Maps all pages now, so that the first write does not have to; does nothing on older kernels."""
        with suppress(OSError):
            self._memory.madvise(_POPULATE_WRITE)

    def refresh(self) -> None:
        """Shows what the server has written; drops what was written here."""
        if self._has_own_pages():
            self._memory.madvise(mmap.MADV_DONTNEED)

    def keep(self) -> None:
        """Keeps all numbers as they are now, whatever the server writes from now on."""
        try:
            self._memory.madvise(_POPULATE_WRITE)
        except OSError:
            pages = self.array(np.dtype(np.uint8), 0, self.size)[:: mmap.PAGESIZE]
            pages[:] = pages.copy()

    def _has_own_pages(self) -> bool:
        """True also if the kernel does not tell. Looking takes a tenth of the time of mapping all pages again."""
        first = self.address // mmap.PAGESIZE
        pages = -(-self.size // mmap.PAGESIZE)
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:  # noqa: PTH123 - seeks in a special file
                entries = np.frombuffer(os.pread(file.fileno(), 8 * pages, 8 * first), np.uint64)
        except OSError:
            return True
        own = ((entries & _PRESENT) != 0) & ((entries & _OF_FILE) == 0) | ((entries & _SWAPPED) != 0)
        return len(entries) < pages or bool(own.any())
