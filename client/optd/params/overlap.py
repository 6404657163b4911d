"""Arrays whose elements overlap in memory: a write to one element changes others."""

from collections.abc import Sequence

import numpy as np


def overlaps_itself(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether elements of an array of this shape overlap in memory; `strides` and `itemsize` have the same unit.

    Those of broadcast and expanded arrays (stride 0) and of sliding windows do. For most layouts the strides alone
    tell; for the others all addresses are compared.
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
