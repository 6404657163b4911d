"""SparseAdam, as torch defines it: Adam for gradients of some rows, which leaves all other rows as they are.

Source of names, defaults, ranges and the order of operations: ``torch/optim/sparse_adam.py`` and
``torch/optim/_functional.py``, ``sparse_adam``. Unlike in Adam, the bias of the second moment is corrected in the
step size, so `eps` has another weight.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import BETAS, MAXIMIZE
from optd_server.optim.arithmetic import add
from optd_server.optim.option import Option, Options, Range, flag, floats, number
from optd_server.optim.row_support import RowSupport

POSITIVE = Range(low=0, low_open=True)


class SparseAdamCoefficients(NamedTuple):
    """The numbers of a step; the first depends on the step count."""

    negative_step_size: Number
    """-lr * sqrt(1 - beta2^t) / (1 - beta1^t)"""
    one_minus_beta1: float
    one_minus_beta2: float
    eps: float
    maximize: bool


def coefficients(options: Options, step: int) -> SparseAdamCoefficients:
    """Return the numbers of step `step`, which counts from 1."""
    beta1, beta2 = floats(options, "betas")
    return SparseAdamCoefficients(
        negative_step_size=-(number(options, "lr") * (1 - beta2**step) ** 0.5 / (1 - beta1**step)),
        one_minus_beta1=1 - beta1,
        one_minus_beta2=1 - beta2,
        eps=number(options, "eps"),
        maximize=flag(options, "maximize"),
    )


def update(c: SparseAdamCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch = block.scratch
    gradient = np.negative(block.gradient, out=changed) if c.maximize else block.gradient
    exp_avg, exp_avg_sq = block.state["exp_avg"], block.state["exp_avg_sq"]
    np.subtract(gradient, exp_avg, out=scratch)
    np.multiply(scratch, c.one_minus_beta1, out=scratch)
    np.add(exp_avg, scratch, out=exp_avg)
    np.multiply(gradient, gradient, out=scratch)
    np.subtract(scratch, exp_avg_sq, out=scratch)
    np.multiply(scratch, c.one_minus_beta2, out=scratch)
    np.add(exp_avg_sq, scratch, out=exp_avg_sq)
    denominator = np.sqrt(exp_avg_sq, out=changed)
    np.add(denominator, c.eps, out=denominator)
    np.divide(exp_avg, denominator, out=changed)
    add(block.weights, changed, c.negative_step_size, out=block.out, scratch=scratch)


def fused(
    c: SparseAdamCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    exp_avg, exp_avg_sq = state
    for i in range(out.size):
        direction = -gradient[i] if c.maximize else gradient[i]
        exp_avg[i] = exp_avg[i] + (direction - exp_avg[i]) * c.one_minus_beta1
        exp_avg_sq[i] = exp_avg_sq[i] + (direction * direction - exp_avg_sq[i]) * c.one_minus_beta2
        out[i] = weights[i] + exp_avg[i] / (np.sqrt(exp_avg_sq[i]) + c.eps) * c.negative_step_size


SPARSE_ADAM = Elementwise(
    name="sparse_adam",
    title="SparseAdam",
    doc="Adam for gradients of some rows, as of embeddings; other rows keep their weights and averages.",
    options=(
        Option("lr", "float", 1e-3, POSITIVE, doc="Learning rate: the factor of each step."),
        BETAS,
        Option("eps", "float", 1e-8, POSITIVE, doc="Added to the denominator for numerical stability."),
        MAXIMIZE,
    ),
    state=(StateField("exp_avg"), StateField("exp_avg_sq")),
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
    rows=RowSupport(only=True),
)
