"""Lion, as its authors define it; torch does not have it.

Chen et al., https://arxiv.org/abs/2302.06675, algorithm 2, in the order of operations of the authors' own
implementation for torch: weight decay, which is decoupled, comes first. Options and checks are in torch's manner.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import FRACTION, MAXIMIZE, decoupled_decay, learning_rate
from optd_server.optim.arithmetic import add, directed, sign
from optd_server.optim.option import Option, Options, flag, floats, number


class LionCoefficients(NamedTuple):
    """The numbers of a step; none depends on the step count."""

    negative_lr: Number
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    shrink: float
    """The factor of the weights, from weight decay: 1 - lr * weight_decay."""
    maximize: bool


def coefficients(options: Options, _: int) -> LionCoefficients:
    """Return the numbers of a step."""
    lr = number(options, "lr")
    beta1, beta2 = floats(options, "betas")
    return LionCoefficients(
        negative_lr=-lr,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        shrink=1 - lr * number(options, "weight_decay"),
        maximize=flag(options, "maximize"),
    )


def update(c: LionCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch, blend = block.scratch
    gradient = directed(block, c.maximize, 0.0, out=changed, scratch=scratch)
    exp_avg = block.state["exp_avg"]
    np.multiply(exp_avg, c.beta1, out=blend)
    add(blend, gradient, c.one_minus_beta1, out=blend, scratch=scratch)
    weights = block.weights if c.shrink == 1 else np.multiply(block.weights, c.shrink, out=block.out)
    sign(blend, out=blend, scratch=scratch)
    add(weights, blend, c.negative_lr, out=block.out, scratch=scratch)
    np.multiply(exp_avg, c.beta2, out=exp_avg)
    add(exp_avg, gradient, c.one_minus_beta2, out=exp_avg, scratch=scratch)


def fused(
    c: LionCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    (exp_avg,) = state
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for i in range(out.size):
        direction = -gradient[i] if c.maximize else gradient[i]
        blend = exp_avg[i] * c.beta1 + direction * c.one_minus_beta1
        sign = (one if blend > 0 else zero) - (one if blend < 0 else zero)
        kept = weights[i] * c.shrink if c.shrink != 1 else weights[i]
        out[i] = kept + sign * c.negative_lr
        exp_avg[i] = exp_avg[i] * c.beta2 + direction * c.one_minus_beta2


LION = Elementwise(
    name="lion",
    title="Lion",
    doc="Lion: steps of equal size, along the sign of a blend of momentum and gradient.",
    options=(
        learning_rate(1e-4),
        Option(
            "betas",
            "floats",
            (0.9, 0.99),
            entries=(FRACTION, FRACTION),
            doc="The momentum's share in the direction of the step, and how much of itself the momentum keeps at each "
            "step.",
        ),
        decoupled_decay(0.0),
        MAXIMIZE,
    ),
    state=(StateField("exp_avg"),),
    coefficients=coefficients,
    update=update,
    scratch=3,
    fused=fused,
)
