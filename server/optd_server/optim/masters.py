"""Master weights: the weights of parameters of 16 bits in float32, as state, where a group asks for them.

A step then goes from master weights to master weights, and the weights are these rounded to the parameter's dtype:
steps smaller than half a unit of the weights' last place add up, where they would be lost. An element whose master
weight does not round to its weight has been written since; it goes on from the weight.
"""

import numpy as np

from optd_server.optim import runs
from optd_server.optim.algorithm import Vector


def settle(masters: Vector, weights: Vector) -> None:
    """Make master weights those of `weights` wherever these are not what they round to; 1-d arrays of one length."""
    with np.errstate(all="ignore"):
        for start in range(0, len(weights), runs.BLOCK):
            here = slice(start, start + runs.BLOCK)
            stale = masters[here].astype(weights.dtype) != weights[here]
            np.copyto(masters[here], weights[here], where=stale)
