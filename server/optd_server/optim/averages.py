"""Averages of weights over versions, as `torch.optim.swa_utils.AveragedModel` keeps them.

The first version is copied; each later one moves the average towards it: ``a += share * (w - a)``, with
``share = 1 - decay`` for an exponential moving average and ``share = 1 / (n + 1)`` for the equal average of n + 1.
"""

import numpy as np

from optd_server.optim.algorithm import Vector
from optd_server.optim.runs import BLOCK
from optd_server.optim.threads import share as shared


def move(average: Vector, weights: Vector, share: float, threads: int = 1) -> None:
    """Move an average towards weights, in place: all the way with a share of 1.

    Args:
        average: Shape (N,).
        weights: Of the same shape and dtype. Not modified. Weights of 16 bits are computed on in float32.
        share: In [0, 1].
        threads: How many threads share the work, this one included.
    """

    def work(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            for start in range(first, last, BLOCK):
                here = slice(start, min(start + BLOCK, last))
                _move_block(average[here], weights[here], share)

    shared(work, len(average), threads)


def _move_block(average: Vector, weights: Vector, share: float) -> None:
    if share == 1:
        np.copyto(average, weights)
        return
    dtype = np.float32 if average.itemsize == 2 else average.dtype
    before, now = average.astype(dtype, copy=False), weights.astype(dtype, copy=False)
    difference = now - before
    # As torch's lerp: from the nearer end.
    if share < 0.5:
        moved = before + difference * difference.dtype.type(share)
    else:
        moved = now - difference * difference.dtype.type(1 - share)
    average[:] = moved.astype(average.dtype, copy=False)
