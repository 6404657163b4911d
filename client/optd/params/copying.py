"""Copies of arrays, by several threads if they are large: one core cannot use the memory's full bandwidth."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]
"""Target and source of one shape; numbers are converted to the target's dtype."""

# Below this, threads cost more than they save.
LARGE_BYTES = 4 << 20
MOST_THREADS = 4


def copy_all(pairs: Sequence[Pair]) -> None:
    """Copies all pairs; blocks until that is done."""
    total = sum(target.nbytes for target, _ in pairs)
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    if total < LARGE_BYTES or threads == 1:
        _copy(pairs)
        return
    shares = _shares(pairs, total, threads)
    futures = [_pool(os.getpid()).submit(_copy, share) for share in shares[1:]]
    _copy(shares[0])
    for future in futures:
        future.result()


def _copy(pairs: Sequence[Pair]) -> None:
    for target, source in pairs:
        np.copyto(target, source)


def _shares(pairs: Sequence[Pair], total: int, threads: int) -> list[list[Pair]]:
    """The pairs in `threads` shares of about the same size; large pairs are cut."""
    shares: list[list[Pair]] = [[]]
    most = -(-total // threads)
    room = most
    for target, source in pairs:
        if target.nbytes <= room or not (target.flags.c_contiguous and source.flags.c_contiguous):
            shares[-1].append((target, source))
            room -= target.nbytes
            if room <= 0 and len(shares) < threads:
                shares.append([])
                room = most
            continue
        flat, numbers = target.reshape(-1), source.reshape(-1)
        start = 0
        while start < flat.size:
            count = min(flat.size - start, max(1, room // flat.itemsize))
            shares[-1].append((flat[start : start + count], numbers[start : start + count]))
            start += count
            room -= count * target.itemsize
            if room <= 0 and len(shares) < threads:
                shares.append([])
                room = most
    return shares


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked child makes its own."""
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="optd-copy")
