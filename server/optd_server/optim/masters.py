"""Master weights: the weights of parameters of 16 bits in float32, as state, where a group asks for them.

A step then goes from master weights to master weights, and the weights are these rounded to the parameter's dtype:
steps smaller than half a unit of the weights' last place add up, where they would be lost. An element whose master
weight does not round to its weight has been written since; it goes on from the weight.
"""

import numpy as np
import numpy.typing as npt

from optd_server.optim import runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, Vector
from optd_server.optim.segment import SegmentState


def begin(segment: SegmentState, weights: Vector, starting: npt.NDArray[np.bool_]) -> None:
    """Give the parameters of `starting`, shape (P,), the master weights that they begin with: their weights."""
    masters = segment.state[MASTER_WEIGHTS.name]
    found = runs.merge(segment.sizes, segment.offsets, starting.astype(np.int64))
    for start, stop, chosen in zip(found.starts, found.starts[1:], found.kinds, strict=False):
        if chosen:
            np.copyto(masters[start:stop], weights[start:stop])


def settle(masters: Vector, weights: Vector) -> None:
    """Make master weights those of `weights` wherever these are not what they round to; 1-d arrays of one length."""
    with np.errstate(all="ignore"):
        for start in range(0, len(weights), runs.BLOCK):
            here = slice(start, start + runs.BLOCK)
            stale = masters[here].astype(weights.dtype) != weights[here]
            np.copyto(masters[here], weights[here], where=stale)
