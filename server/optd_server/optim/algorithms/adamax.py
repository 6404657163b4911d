"""Adamax, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/adamax.py``,
``_single_tensor_adamax``; the formula is Kingma & Ba, https://arxiv.org/abs/1412.6980, algorithm 2, with `eps` added
to the gradient's size as torch does.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import BETAS, MAXIMIZE, epsilon, learning_rate, penalty
from optd_server.optim.arithmetic import addcdiv, directed, lerp
from optd_server.optim.option import Options, flag, floats, number


class AdamaxCoefficients(NamedTuple):
    """The numbers of a step; the first depends on the step count."""

    negative_step_size: Number
    """-lr / (1 - beta1^t)"""
    one_minus_beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool


def coefficients(options: Options, step: int) -> AdamaxCoefficients:
    """Return the numbers of step `step`, which counts from 1."""
    beta1, beta2 = floats(options, "betas")
    return AdamaxCoefficients(
        negative_step_size=-(number(options, "lr") / (1 - beta1**step)),
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        eps=number(options, "eps"),
        weight_decay=number(options, "weight_decay"),
        maximize=flag(options, "maximize"),
    )


def update(c: AdamaxCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    exp_avg, exp_inf = block.state["exp_avg"], block.state["exp_inf"]
    lerp(exp_avg, gradient, c.one_minus_beta1, out=exp_avg, scratch=scratch)
    size = np.add(np.abs(gradient, out=changed), c.eps, out=changed)
    np.maximum(np.multiply(exp_inf, c.beta2, out=exp_inf), size, out=exp_inf)
    addcdiv(block.weights, exp_avg, exp_inf, c.negative_step_size, out=block.out, scratch=scratch)


def fused(
    c: AdamaxCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    exp_avg, exp_inf = state
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
        size = abs(direction) + c.eps
        decayed = exp_inf[i] * c.beta2
        exp_inf[i] = decayed if decayed >= size or np.isnan(decayed) else size
        out[i] = weights[i] + exp_avg[i] * c.negative_step_size / exp_inf[i]


ADAMAX = Elementwise(
    name="adamax",
    title="Adamax",
    doc="Adamax: Adam with a decaying maximum of the gradient's magnitude in place of its second moment.",
    options=(learning_rate(2e-3), BETAS, epsilon(1e-8), penalty(), MAXIMIZE),
    state=(StateField("exp_avg"), StateField("exp_inf")),
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
