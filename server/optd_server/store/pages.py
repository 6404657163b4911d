"""Memory pages: found before they are needed, and given back when nothing needs them any more.

The system gives memory to a page when something first writes to it, which takes longer than many a computation on it.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt

# In Linux since 5.14: as writing to each page, without a change to what is there.
_POPULATE_WRITE = 23
LEAST = 4 << 20
"""Bytes; smaller arrays are found in no time."""
PIECE = 32 << 20
"""Bytes that are found in one go: so several threads share the work, and it can be ended early."""

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def pieces(arrays: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Arrays of one dimension cut into pieces that `touch` takes in a moment; small arrays are left out."""
    for array in arrays:
        if array.nbytes >= LEAST:
            step = max(1, PIECE // array.itemsize)
            yield from (array[start : start + step] for start in range(0, len(array), step))


def touch(array: npt.NDArray[Any]) -> bool:
    """Has the system give memory to all pages of an array that lies in one piece; what is in it stays as it is.

    Safe while others read and write there. Returns False where the system cannot do that: then the first use does.
    """
    first: int = array.__array_interface__["data"][0]
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(_libc.madvise(start, first + array.nbytes - start, _POPULATE_WRITE) == 0)


def give_back() -> None:
    """Gives the system the pages that this process has freed, and that its allocator keeps for later.

    Does nothing where the C library has no such function: not all are glibc.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
