"""Arrays of which several elements lie at one address: what is written to one of these shows in the others."""

from collections.abc import Sequence

import numpy as np


def overlaps_itself(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether an array of this shape has elements in common memory; `strides` and `itemsize` are of one unit.

    Broadcast and expanded arrays have, with strides of 0, and so have sliding windows. Most layouts are known to be
    apart by their strides alone; of others all addresses are looked at.
    """
    if 0 in shape:
        return False
    dims = sorted((abs(stride), size) for size, stride in zip(shape, strides, strict=True) if size > 1)
    end = itemsize
    for stride, size in dims:
        if stride < end:
            return _any_in_common(dims, itemsize)
        end += stride * (size - 1)
    return False


def _any_in_common(dims: Sequence[tuple[int, int]], itemsize: int) -> bool:
    if dims[0][0] < itemsize:
        return True
    addresses = np.zeros(1, np.int64)
    for stride, size in dims:
        addresses = (addresses[:, None] + np.arange(size) * stride).reshape(-1)
    addresses.sort()
    return bool((np.diff(addresses) < itemsize).any())
