"""Whether an array holds only finite numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.runs import BLOCK


def first_nonfinite(array: npt.NDArray[np.floating[Any]]) -> int | None:
    """Return the index of the first NaN or infinity of a 1-d array, or None."""
    for start in range(0, len(array), BLOCK):
        block = array[start : start + BLOCK]
        if not all_finite(block):
            return start + int(np.argmin(np.isfinite(block)))
    return None


def all_finite(block: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether a 1-d array that fits the cache holds only finite numbers.

    NaN and infinity survive every sum, so a finite sum proves that there is neither, at the speed of reading. A sum
    may overflow although no element is infinite: then every element is checked.
    """
    with np.errstate(all="ignore"):
        total = np.add.reduce(block)
    return bool(np.isfinite(total) or np.isfinite(block).all())
