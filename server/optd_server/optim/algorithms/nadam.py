"""NAdam, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/nadam.py``, ``_single_tensor_nadam``; the
formula is Dozat, "Incorporating Nesterov Momentum into Adam" (2016), with a momentum that grows with the steps.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector, scalar_field
from optd_server.optim.algorithms.options import (
    BETAS,
    DECOUPLED_WEIGHT_DECAY,
    MAXIMIZE,
    NOT_NEGATIVE,
    epsilon,
    learning_rate,
    penalty,
)
from optd_server.optim.arithmetic import addcdiv, addcmul, directed, lerp, quotient
from optd_server.optim.option import Option, Options, flag, floats, number


class NAdamCoefficients(NamedTuple):
    """The numbers of a step. The first three depend on the step count, two of them on the momenta so far."""

    of_gradient: Number
    """-lr * (1 - mu_t) / (1 - mu_1 * ... * mu_t)"""
    of_average: Number
    """-lr * mu_(t+1) / (1 - mu_1 * ... * mu_(t+1))"""
    bias_correction2: Number
    """1 - beta2^t"""
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    weight_decay: float
    """The L2 penalty that is added to the gradient; 0 if weight decay is decoupled."""
    shrink: float
    """What decoupled weight decay leaves of the weights: 1 - lr * weight_decay; 1 if it is not decoupled."""
    maximize: bool


def advance(options: Options, step: int, scalars: tuple[float, ...]) -> tuple[NAdamCoefficients, tuple[float, ...]]:
    """Return the numbers of step `step`, which counts from 1, and the product of all momenta after it."""
    lr, weight_decay, decay = number(options, "lr"), number(options, "weight_decay"), number(options, "momentum_decay")
    beta1, beta2 = floats(options, "betas")
    decoupled = flag(options, "decoupled_weight_decay")
    mu, following = (beta1 * (1.0 - 0.5 * 0.96 ** (count * decay)) for count in (step, step + 1))
    # A float32 number, and multiplied as one.
    product = float(np.float32(scalars[0]) * np.float32(mu))
    return NAdamCoefficients(
        of_gradient=quotient(-lr * (1.0 - mu), 1.0 - product),
        of_average=quotient(-lr * following, 1.0 - product * following),
        bias_correction2=1 - beta2**step,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        eps=number(options, "eps"),
        weight_decay=0.0 if decoupled else weight_decay,
        shrink=1 - lr * weight_decay if decoupled else 1.0,
        maximize=flag(options, "maximize"),
    ), (product,)


def update(c: NAdamCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch, denominator = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    exp_avg, exp_avg_sq = block.state["exp_avg"], block.state["exp_avg_sq"]
    lerp(exp_avg, gradient, c.one_minus_beta1, out=exp_avg, scratch=scratch)
    np.multiply(exp_avg_sq, c.beta2, out=exp_avg_sq)
    addcmul(exp_avg_sq, gradient, gradient, c.one_minus_beta2, out=exp_avg_sq, scratch=scratch)
    np.divide(exp_avg_sq, c.bias_correction2, out=denominator)
    np.add(np.sqrt(denominator, out=denominator), c.eps, out=denominator)
    weights = block.weights if c.shrink == 1 else np.multiply(block.weights, c.shrink, out=block.out)
    addcdiv(weights, gradient, denominator, c.of_gradient, out=block.out, scratch=scratch)
    addcdiv(block.out, exp_avg, denominator, c.of_average, out=block.out, scratch=scratch)


def fused(
    c: NAdamCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    exp_avg, exp_avg_sq = state
    far = abs(c.one_minus_beta1) >= 0.5
    factor = c.one_minus_beta1 - out.dtype.type(1) if far else c.one_minus_beta1
    for i in range(out.size):
        direction = gradient[i]
        if c.maximize:
            direction = -direction
        if c.weight_decay != 0:
            direction = direction + weights[i] * c.weight_decay
        nearer = direction if far else exp_avg[i]
        exp_avg[i] = nearer + (direction - exp_avg[i]) * factor
        exp_avg_sq[i] = exp_avg_sq[i] * c.beta2 + direction * c.one_minus_beta2 * direction
        denominator = np.sqrt(exp_avg_sq[i] / c.bias_correction2) + c.eps
        kept = weights[i] * c.shrink if c.shrink != 1 else weights[i]
        nearly = kept + direction * c.of_gradient / denominator
        out[i] = nearly + exp_avg[i] * c.of_average / denominator


NADAM = Elementwise(
    name="nadam",
    title="NAdam",
    doc="NAdam: Adam with Nesterov momentum.",
    options=(
        learning_rate(2e-3),
        BETAS,
        epsilon(1e-8),
        penalty(),
        Option("momentum_decay", "float", 4e-3, NOT_NEGATIVE, doc="how fast the momentum grows to betas[0]"),
        DECOUPLED_WEIGHT_DECAY,
        MAXIMIZE,
    ),
    state=(scalar_field("mu_product", lambda _: 1.0), StateField("exp_avg"), StateField("exp_avg_sq")),
    advance=advance,
    update=update,
    scratch=3,
    fused=fused,
)
