"""Memory pages: allocated before they are needed, and returned to the system when they are free.

The system allocates a page when something first writes to it. That often takes longer than the computation on it.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt

# MADV_POPULATE_WRITE: allocates pages as a write would, but keeps their content. In Linux since 5.14.
_POPULATE_WRITE = 23
LEAST = 4 << 20
"""Bytes: the pages of smaller arrays are not worth a call."""
PIECE = 32 << 20
"""Bytes that one call of `prefault` allocates: small enough to share the work among threads and to stop early."""

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def pieces(arrays: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Cut arrays of one dimension into pieces that `prefault` handles quickly; leave out small arrays."""
    for array in arrays:
        if array.nbytes >= LEAST:
            step = max(1, PIECE // array.itemsize)
            yield from (array[start : start + step] for start in range(0, len(array), step))


def prefault(array: npt.NDArray[Any]) -> bool:
    """Allocate all pages of a contiguous array without changing its content.

    Other threads may read and write the array meanwhile. Returns False if the system cannot do this; the pages are
    then allocated at their first use.
    """
    first: int = array.__array_interface__["data"][0]
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(_libc.madvise(start, first + array.nbytes - start, _POPULATE_WRITE) == 0)


def give_back() -> None:
    """Return the pages that this process has freed, but its allocator keeps for later, to the system.

    Does nothing unless the C library has `malloc_trim`, as glibc does.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
