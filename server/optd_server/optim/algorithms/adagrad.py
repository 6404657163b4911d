"""Adagrad, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/adagrad.py``, ``_single_tensor_adagrad``;
the formula is Duchi et al., http://jmlr.org/papers/v12/duchi11a.html, with a decay of the learning rate.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import MAXIMIZE, NOT_NEGATIVE, epsilon, learning_rate, penalty
from optd_server.optim.arithmetic import addcdiv, addcmul, directed
from optd_server.optim.option import Option, Options, flag, number
from optd_server.optim.row_support import RowSupport


class AdagradCoefficients(NamedTuple):
    """The numbers of a step; the first depends on the step count."""

    negative_step_size: Number
    """-lr / (1 + (t - 1) * lr_decay)"""
    eps: float
    weight_decay: float
    maximize: bool


def coefficients(options: Options, step: int) -> AdagradCoefficients:
    """Return the numbers of step `step`, which counts from 1."""
    return AdagradCoefficients(
        negative_step_size=-(number(options, "lr") / (1 + (step - 1) * number(options, "lr_decay"))),
        eps=number(options, "eps"),
        weight_decay=number(options, "weight_decay"),
        maximize=flag(options, "maximize"),
    )


def update(c: AdagradCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch, std = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    total = block.state["sum"]
    addcmul(total, gradient, gradient, 1.0, out=total, scratch=scratch)
    np.add(np.sqrt(total, out=std), c.eps, out=std)
    addcdiv(block.weights, gradient, std, c.negative_step_size, out=block.out, scratch=scratch)


def fused(
    c: AdagradCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    (total,) = state
    for i in range(out.size):
        direction = gradient[i]
        if c.maximize:
            direction = -direction
        if c.weight_decay != 0:
            direction = direction + weights[i] * c.weight_decay
        total[i] = total[i] + direction * direction
        out[i] = weights[i] + direction * c.negative_step_size / (np.sqrt(total[i]) + c.eps)


ADAGRAD = Elementwise(
    name="adagrad",
    title="Adagrad",
    doc="Adagrad: gradients divided by the root of the sum of their squares so far.",
    options=(
        learning_rate(1e-2),
        Option(
            "lr_decay",
            "float",
            0.0,
            NOT_NEGATIVE,
            doc="At step t of a parameter the learning rate is `lr / (1 + (t - 1) * lr_decay)`.",
        ),
        penalty(),
        Option(
            "initial_accumulator_value",
            "float",
            0.0,
            NOT_NEGATIVE,
            every_step=False,
            doc="What the sum of squares starts from; read at the first gradient of a parameter.",
        ),
        epsilon(1e-10),
        MAXIMIZE,
    ),
    state=(StateField("sum", initial=lambda options: number(options, "initial_accumulator_value")),),
    rows=RowSupport(zero=("weight_decay",)),
    coefficients=coefficients,
    update=update,
    scratch=3,
    fused=fused,
)
