"""Master weights: float32 copies of the weights of 16-bit parameters, kept as state if a group asks for them.

A step goes from master weights to master weights, and rounds them to the parameter's dtype for the weights. So steps
smaller than half a unit in the weights' last place add up instead of being lost. If a master weight does not round to
its weight, somebody has written the weight since, and the step goes on from the weight.
"""

import numpy as np

from optd_server.optim import runs
from optd_server.optim.algorithm import Vector


def settle(masters: Vector, weights: Vector) -> None:
    """Set master weights to `weights` wherever they do not round to these; 1-d arrays of one length."""
    with np.errstate(all="ignore"):
        for start in range(0, len(weights), runs.BLOCK):
            here = slice(start, start + runs.BLOCK)
            stale = masters[here].astype(weights.dtype) != weights[here]
            np.copyto(masters[here], weights[here], where=stale)
