"""Whether an array holds only finite numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.runs import BLOCK


def first_nonfinite(array: npt.NDArray[np.floating[Any]]) -> int | None:
    """Return the index of the first NaN or infinity of a 1-d array, or None.

    NaN and infinity survive every sum, so a finite sum proves that a block holds neither, at the speed of
    reading it. A sum may overflow where no element is infinite: then every element is looked at.
    """
    for start in range(0, len(array), BLOCK):
        block = array[start : start + BLOCK]
        with np.errstate(all="ignore"):
            total = np.add.reduce(block)
        if not np.isfinite(total):
            found = np.flatnonzero(~np.isfinite(block))
            if len(found):
                return start + int(found[0])
    return None
