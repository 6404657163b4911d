"""RAdam, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/radam.py``, ``_single_tensor_radam``;
the formula is Liu et al., https://arxiv.org/abs/1908.03265, algorithm 2, with `eps` and with the bound of 5 that torch
has.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import (
    BETAS,
    DECOUPLED_WEIGHT_DECAY,
    MAXIMIZE,
    epsilon,
    learning_rate,
    penalty,
)
from optd_server.optim.arithmetic import addcmul, directed, lerp
from optd_server.optim.option import Options, flag, floats, number


class RAdamCoefficients(NamedTuple):
    """The numbers of a step. Except for the first, those that may differ within a block depend on the step count."""

    lr: Number
    bias_correction1: Number
    """1 - beta1^t"""
    bias_correction2_sqrt: Number
    """sqrt(1 - beta2^t)"""
    rectification: Number
    """The factor of the adaptive step; not used in a plain step."""
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    weight_decay: float
    """The L2 penalty that is added to the gradient; 0 if weight decay is decoupled."""
    shrink: float
    """The factor of the weights: 1 - lr * weight_decay if weight decay is decoupled, else 1."""
    adaptive: bool
    """Whether the second moment has been averaged over enough steps to divide by it."""
    maximize: bool


def coefficients(options: Options, step: int) -> RAdamCoefficients:
    """Return the numbers of step `step`, which counts from 1."""
    lr, weight_decay = number(options, "lr"), number(options, "weight_decay")
    beta1, beta2 = floats(options, "betas")
    decoupled = flag(options, "decoupled_weight_decay")
    bias_correction2 = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * (beta2**step) / bias_correction2
    adaptive = length > 5.0
    return RAdamCoefficients(
        lr=lr,
        bias_correction1=1 - beta1**step,
        bias_correction2_sqrt=bias_correction2**0.5,
        rectification=_rectification(length, longest) if adaptive else 1.0,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        eps=number(options, "eps"),
        weight_decay=0.0 if decoupled else weight_decay,
        shrink=1 - lr * weight_decay if decoupled else 1.0,
        adaptive=adaptive,
        maximize=flag(options, "maximize"),
    )


def _rectification(length: float, longest: float) -> float:
    """Return r_t of the paper, from rho_t, the length of the moving average, and the limit of rho_t."""
    return float(((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5)


def update(c: RAdamCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    exp_avg, exp_avg_sq = block.state["exp_avg"], block.state["exp_avg_sq"]
    lerp(exp_avg, gradient, c.one_minus_beta1, out=exp_avg, scratch=scratch)
    np.multiply(exp_avg_sq, c.beta2, out=exp_avg_sq)
    addcmul(exp_avg_sq, gradient, gradient, c.one_minus_beta2, out=exp_avg_sq, scratch=scratch)
    step = np.divide(exp_avg, c.bias_correction1, out=changed)
    np.multiply(step, c.lr, out=step)
    if c.adaptive:
        rate = np.add(np.sqrt(exp_avg_sq, out=scratch), c.eps, out=scratch)
        np.multiply(np.reciprocal(rate, out=rate), c.bias_correction2_sqrt, out=rate)
        np.multiply(step, rate, out=step)
        np.multiply(step, c.rectification, out=step)
    weights = block.weights if c.shrink == 1 else np.multiply(block.weights, c.shrink, out=block.out)
    np.subtract(weights, step, out=block.out)


def fused(
    c: RAdamCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    exp_avg, exp_avg_sq = state
    one = out.dtype.type(1)
    far = abs(c.one_minus_beta1) >= 0.5
    factor = c.one_minus_beta1 - one if far else c.one_minus_beta1
    for i in range(out.size):
        direction = gradient[i]
        if c.maximize:
            direction = -direction
        if c.weight_decay != 0:
            direction = direction + weights[i] * c.weight_decay
        nearer = direction if far else exp_avg[i]
        exp_avg[i] = nearer + (direction - exp_avg[i]) * factor
        exp_avg_sq[i] = exp_avg_sq[i] * c.beta2 + direction * c.one_minus_beta2 * direction
        step = exp_avg[i] / c.bias_correction1 * c.lr
        if c.adaptive:
            step = step * (one / (np.sqrt(exp_avg_sq[i]) + c.eps) * c.bias_correction2_sqrt) * c.rectification
        kept = weights[i] * c.shrink if c.shrink != 1 else weights[i]
        out[i] = kept - step


RADAM = Elementwise(
    name="radam",
    title="RAdam",
    doc="RAdam: Adam that takes plain steps until enough gradients have entered its second moment.",
    options=(learning_rate(1e-3), BETAS, epsilon(1e-8), penalty(), DECOUPLED_WEIGHT_DECAY, MAXIMIZE),
    state=(StateField("exp_avg"), StateField("exp_avg_sq")),
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
