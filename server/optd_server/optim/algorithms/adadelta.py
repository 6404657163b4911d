"""Adadelta, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/adadelta.py``,
``_single_tensor_adadelta``; the formula is Zeiler, https://arxiv.org/abs/1212.5701, algorithm 1.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import MAXIMIZE, NOT_NEGATIVE, epsilon, penalty
from optd_server.optim.arithmetic import add, addcmul, directed
from optd_server.optim.option import Option, Options, Range, flag, number


class AdadeltaCoefficients(NamedTuple):
    """The numbers of a step; none depends on the step count."""

    negative_lr: Number
    rho: float
    one_minus_rho: float
    eps: float
    weight_decay: float
    maximize: bool


def coefficients(options: Options, _: int) -> AdadeltaCoefficients:
    """Return the numbers of a step."""
    rho = number(options, "rho")
    return AdadeltaCoefficients(
        negative_lr=-number(options, "lr"),
        rho=rho,
        one_minus_rho=1 - rho,
        eps=number(options, "eps"),
        weight_decay=number(options, "weight_decay"),
        maximize=flag(options, "maximize"),
    )


def update(c: AdadeltaCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch, std = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    square_avg, acc_delta = block.state["square_avg"], block.state["acc_delta"]
    np.multiply(square_avg, c.rho, out=square_avg)
    addcmul(square_avg, gradient, gradient, c.one_minus_rho, out=square_avg, scratch=scratch)
    np.sqrt(np.add(square_avg, c.eps, out=std), out=std)
    delta = np.sqrt(np.add(acc_delta, c.eps, out=block.out), out=block.out)
    np.divide(delta, std, out=delta)
    delta = np.multiply(delta, gradient, out=changed)
    np.multiply(acc_delta, c.rho, out=acc_delta)
    addcmul(acc_delta, delta, delta, c.one_minus_rho, out=acc_delta, scratch=scratch)
    add(block.weights, delta, c.negative_lr, out=block.out, scratch=scratch)


def fused(
    c: AdadeltaCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    square_avg, acc_delta = state
    for i in range(out.size):
        direction = gradient[i]
        if c.maximize:
            direction = -direction
        if c.weight_decay != 0:
            direction = direction + weights[i] * c.weight_decay
        square_avg[i] = square_avg[i] * c.rho + direction * c.one_minus_rho * direction
        delta = np.sqrt(acc_delta[i] + c.eps) / np.sqrt(square_avg[i] + c.eps) * direction
        acc_delta[i] = acc_delta[i] * c.rho + delta * c.one_minus_rho * delta
        out[i] = weights[i] + delta * c.negative_lr


ADADELTA = Elementwise(
    name="adadelta",
    title="Adadelta",
    doc="Adadelta: steps in the units of the weights, scaled by running averages of squared gradients and steps.",
    options=(
        Option("lr", "float", 1.0, NOT_NEGATIVE, doc="The factor of each step."),
        Option(
            "rho",
            "float",
            0.9,
            Range(low=0, high=1),
            doc="How much of themselves the running averages keep at each step.",
        ),
        epsilon(1e-6),
        penalty(),
        MAXIMIZE,
    ),
    state=(StateField("square_avg"), StateField("acc_delta")),
    coefficients=coefficients,
    update=update,
    scratch=3,
    fused=fused,
)
