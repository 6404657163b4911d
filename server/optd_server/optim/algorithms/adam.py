"""Adam, as torch defines it, and the update that AdamW shares.

Source of names, defaults, ranges and the order of operations: ``torch/optim/adam.py``,
``_single_tensor_adam``; the formula is Kingma & Ba, https://arxiv.org/abs/1412.6980, algorithm 1, and for
amsgrad Reddi et al., https://openreview.net/forum?id=ryQu7f-RZ.
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
from optd_server.optim.arithmetic import addcdiv, addcmul, directed, lerp
from optd_server.optim.option import Option, Options, flag, floats, number


class AdamCoefficients(NamedTuple):
    """The numbers of a step. The first two depend on the step count, the first on `lr` too."""

    negative_step_size: Number
    """-lr / (1 - beta1^t)"""
    bias_correction2_sqrt: Number
    """sqrt(1 - beta2^t)"""
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    weight_decay: float
    """The L2 penalty that is added to the gradient; 0 if weight decay is decoupled."""
    shrink: float
    """What decoupled weight decay leaves of the weights: 1 - lr * weight_decay; 1 if it is not decoupled."""
    maximize: bool
    amsgrad: bool


def coefficients(options: Options, step: int) -> AdamCoefficients:
    """Return the numbers of step `step`, which counts from 1."""
    lr, weight_decay = number(options, "lr"), number(options, "weight_decay")
    beta1, beta2 = floats(options, "betas")
    # AdamW declares no such option: it is what AdamW is.
    decoupled = bool(options.get("decoupled_weight_decay", True))
    return AdamCoefficients(
        negative_step_size=-(lr / (1 - beta1**step)),
        bias_correction2_sqrt=(1 - beta2**step) ** 0.5,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        eps=number(options, "eps"),
        weight_decay=0.0 if decoupled else weight_decay,
        shrink=1 - lr * weight_decay if decoupled else 1.0,
        maximize=flag(options, "maximize"),
        amsgrad=flag(options, "amsgrad"),
    )


def update(c: AdamCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    weights = block.weights if c.shrink == 1 else np.multiply(block.weights, c.shrink, out=block.out)
    exp_avg = block.state["exp_avg"]
    lerp(exp_avg, gradient, c.one_minus_beta1, out=exp_avg, scratch=scratch)
    second = _second_moment(c, gradient, block, scratch)
    denominator = np.sqrt(second, out=changed)
    np.divide(denominator, c.bias_correction2_sqrt, out=denominator)
    np.add(denominator, c.eps, out=denominator)
    addcdiv(weights, exp_avg, denominator, c.negative_step_size, out=block.out, scratch=scratch)


def _second_moment(c: AdamCoefficients, gradient: Vector, block: Block, scratch: Vector) -> Vector:
    exp_avg_sq = block.state["exp_avg_sq"]
    np.multiply(exp_avg_sq, c.beta2, out=exp_avg_sq)
    addcmul(exp_avg_sq, gradient, gradient, c.one_minus_beta2, out=exp_avg_sq, scratch=scratch)
    largest = block.state.get("max_exp_avg_sq")
    return exp_avg_sq if largest is None else np.maximum(largest, exp_avg_sq, out=largest)


def fused(
    c: AdamCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    exp_avg, exp_avg_sq, largest = state
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
    if c.amsgrad:
        for i in range(out.size):
            if not (largest[i] >= exp_avg_sq[i] or np.isnan(largest[i])):
                largest[i] = exp_avg_sq[i]
    second = largest if c.amsgrad else exp_avg_sq
    for i in range(out.size):
        denominator = np.sqrt(second[i]) / c.bias_correction2_sqrt + c.eps
        kept = weights[i] * c.shrink if c.shrink != 1 else weights[i]
        out[i] = kept + exp_avg[i] * c.negative_step_size / denominator


AMSGRAD = Option("amsgrad", "bool", False, doc="divide by the largest second moment so far (AMSGrad)")

STATE = (
    StateField("exp_avg"),
    StateField("exp_avg_sq"),
    StateField("max_exp_avg_sq", lambda o: flag(o, "amsgrad")),
)

ADAM = Elementwise(
    name="adam",
    title="Adam",
    doc="Adam: steps scaled by running averages of the gradient and of its square.",
    options=(
        learning_rate(1e-3),
        BETAS,
        epsilon(1e-8),
        penalty(),
        AMSGRAD,
        MAXIMIZE,
        DECOUPLED_WEIGHT_DECAY,
    ),
    state=STATE,
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
