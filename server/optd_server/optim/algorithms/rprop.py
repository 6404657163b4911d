"""Rprop, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/rprop.py``, ``_single_tensor_rprop``; the
formula is Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm"
(1993), in the variant that forgets a gradient whose sign has changed, and takes no step back.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, StateField, Vector
from optd_server.optim.algorithms.options import MAXIMIZE
from optd_server.optim.arithmetic import directed, sign
from optd_server.optim.option import Option, Options, Range, flag, floats, number


class RpropCoefficients(NamedTuple):
    """The numbers of a step; none depends on the step count."""

    lr: float
    """The initial step size."""
    shrinking: float
    growing: float
    smallest: float
    largest: float
    maximize: bool


def coefficients(options: Options, _: int) -> RpropCoefficients:
    """Return the numbers of a step."""
    shrinking, growing = floats(options, "etas")
    smallest, largest = floats(options, "step_sizes")
    return RpropCoefficients(
        lr=number(options, "lr"),
        shrinking=shrinking,
        growing=growing,
        smallest=smallest,
        largest=largest,
        maximize=flag(options, "maximize"),
    )


def update(c: RpropCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch, factor = block.scratch
    gradient = directed(block, c.maximize, 0.0, out=changed, scratch=scratch)
    prev, step_size = block.state["prev"], block.state["step_size"]
    if block.fresh:
        step_size.fill(c.lr)
    np.multiply(gradient, prev, out=factor)
    rising, falling = factor > 0, factor < 0
    factor.fill(1)
    np.copyto(factor, c.growing, where=rising)
    # As in torch, a factor that rounds to 0 in the data's dtype is 1.
    np.copyto(factor, c.shrinking if c.shrinking != 0 else 1, where=falling)
    np.multiply(step_size, factor, out=step_size)
    np.minimum(np.maximum(step_size, c.smallest, out=step_size), c.largest, out=step_size)
    np.copyto(prev, gradient)
    prev[factor == c.shrinking] = 0
    direction = sign(prev, out=factor, scratch=scratch)
    np.multiply(direction, step_size, out=direction)
    np.subtract(block.weights, direction, out=block.out)


def fused(
    c: RpropCoefficients, fresh: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    prev, step_size = state
    zero, one = out.dtype.type(0), out.dtype.type(1)
    shrinking = c.shrinking if c.shrinking != 0 else one
    for i in range(out.size):
        direction = -gradient[i] if c.maximize else gradient[i]
        change = direction * prev[i]
        factor = c.growing if change > 0 else one
        factor = shrinking if change < 0 else factor
        size = (c.lr if fresh else step_size[i]) * factor
        size = c.smallest if size < c.smallest else size
        size = c.largest if size > c.largest else size
        step_size[i] = size
        direction = zero if factor == c.shrinking else direction
        prev[i] = direction
        towards = (one if direction > 0 else zero) - (one if direction < 0 else zero)
        out[i] = weights[i] - towards * size


RPROP = Elementwise(
    name="rprop",
    title="Rprop",
    doc="Rprop: a step size for each weight, which grows while the gradient keeps its sign, and else shrinks.",
    options=(
        Option("lr", "float", 1e-2, Range(low=0), doc="The step size at the first gradient of a parameter."),
        Option(
            "etas",
            "floats",
            (0.5, 1.2),
            entries=(
                Range(low=0, high=1, low_open=True, high_open=True),
                Range(low=1, low_open=True),
            ),
            doc="The factor of the step size when the gradient has changed its sign, and the factor when it has not.",
        ),
        Option(
            "step_sizes",
            "floats",
            (1e-6, 50.0),
            entries=(Range(infinite=True), Range(infinite=True)),
            doc="The smallest and the largest step size.",
        ),
        MAXIMIZE,
    ),
    state=(StateField("prev"), StateField("step_size", seeded=True)),
    coefficients=coefficients,
    update=update,
    scratch=3,
    fused=fused,
)
