"""The norm of the difference of two arrays, without an array of differences."""

import numpy as np

from optd_server.optim.algorithm import Vector
from optd_server.optim.clipping import norm_of, vector_norm
from optd_server.optim.runs import BLOCK
from optd_server.optim.threads import share


def difference_norm(new: Vector, old: Vector, p: float, threads: int = 1) -> float:
    """Return the p-norm of ``new - old``, subtracted and added up in float64. Both have shape (N,)."""

    def work(first: int, last: int) -> list[float]:
        return [_block(new, old, start, min(start + BLOCK, last), p) for start in range(first, last, BLOCK)]

    parts = [norm for found in share(work, len(new), threads, unit=BLOCK) for norm in found]
    # Sorted, so that the sum does not depend on the order in which threads finish.
    return norm_of(np.sort(np.asarray(parts)), p)


def _block(new: Vector, old: Vector, start: int, stop: int, p: float) -> float:
    with np.errstate(all="ignore"):
        return vector_norm(new[start:stop].astype(np.float64) - old[start:stop].astype(np.float64), p)
