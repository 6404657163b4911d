"""Assignment: pushed values become the weights. For buffers, such as the running statistics of BatchNorm.

Workers push values in the place of gradients. A round leaves the mean of its pushes, also if gradients are summed;
without rounds the last push counts. Values that are whole numbers travel as floats, and clients turn them back.

It has no options of its own. Those that every group has apply like this:

- A schedule of a learning rate or of momentum is refused, as for every algorithm that has neither.
- Clipping of the group and lookahead are refused: they would leave something else than what was pushed.
- `master_weights` changes nothing: the weights are what the pushed float32 values round to.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Vector
from optd_server.optim.option import Options


class AssignCoefficients(NamedTuple):
    """No step needs a number; this one is there because kernels are given a record of at least one."""

    nothing: float


def coefficients(_: Options, __: int) -> AssignCoefficients:
    """Return the coefficients of every step."""
    return AssignCoefficients(0.0)


def update(_: AssignCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    np.copyto(block.out, block.gradient)


def fused(
    _: AssignCoefficients, __: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    for i in range(out.size):
        out[i] = gradient[i]


ASSIGN = Elementwise(
    name="assign",
    title="Assign",
    doc="Assignment: the mean of what a round has pushed becomes the weights; for buffers such as running statistics.",
    options=(),
    takes_values=True,
    coefficients=coefficients,
    update=update,
    fused=fused,
)
