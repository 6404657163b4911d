"""Regions of shared memory as a worker maps them.

A region of weights is mapped privately: of what the server writes everything is seen, and of what is written here the
server and others see nothing. A page that is written here becomes a copy of this process's own, and shows from then on
nothing of what the server writes: `refresh` gives it up, and `keep` makes such copies of all pages.
"""

import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

# In Linux since 5.14: as writing to each page, without a change to what is there.
_POPULATE_WRITE = 23
# What /proc/self/pagemap tells of a page, in 64 bits (https://docs.kernel.org/admin-guide/mm/pagemap.html).
_PRESENT, _SWAPPED, _OF_FILE = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1 << 61)


class Region:
    """A mapped region, which takes its descriptor over. Stays mapped while anything in it is referred to."""

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
        """Finds all pages now, so that no first write waits for it; where the system cannot, that write does."""
        with suppress(OSError):
            self._memory.madvise(_POPULATE_WRITE)

    def refresh(self) -> None:
        """Shows what the server has written, whatever was written here."""
        if self._has_own_pages():
            self._memory.madvise(mmap.MADV_DONTNEED)

    def keep(self) -> None:
        """Leaves all numbers as they are now, whatever the server writes from now on."""
        try:
            self._memory.madvise(_POPULATE_WRITE)
        except OSError:
            pages = self.array(np.dtype(np.uint8), 0, self.size)[:: mmap.PAGESIZE]
            pages[:] = pages.copy()

    def _has_own_pages(self) -> bool:
        """Looking takes a tenth of the time that all pages take to be found again; where one cannot look, True."""
        first = self.address // mmap.PAGESIZE
        pages = -(-self.size // mmap.PAGESIZE)
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:  # noqa: PTH123 - seeks in a special file
                entries = np.frombuffer(os.pread(file.fileno(), 8 * pages, 8 * first), np.uint64)
        except OSError:
            return True
        own = ((entries & _PRESENT) != 0) & ((entries & _OF_FILE) == 0) | ((entries & _SWAPPED) != 0)
        return len(entries) < pages or bool(own.any())
