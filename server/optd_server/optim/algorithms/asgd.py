"""ASGD, averaged stochastic gradient descent, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/asgd.py``, ``_single_tensor_asgd``; the
formula is Polyak & Juditsky, "Acceleration of stochastic approximation by averaging" (1992), with the decay of Bottou.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector, scalar_field
from optd_server.optim.algorithms.options import MAXIMIZE, learning_rate, penalty
from optd_server.optim.arithmetic import add, directed, quotient
from optd_server.optim.option import Option, Options, flag, number


class ASGDCoefficients(NamedTuple):
    """The numbers of a step. The first three follow from the scalars that the step before has left."""

    shrink: Number
    """1 - lambd * eta"""
    negative_eta: Number
    mu: Number
    """The weight of the new weights in the average."""
    restarts: bool
    """Whether the average equals the new weights, because mu is 1."""
    weight_decay: float
    maximize: bool


def advance(options: Options, step: int, scalars: tuple[float, ...]) -> tuple[ASGDCoefficients, tuple[float, ...]]:
    """Return the numbers of step `step`, which counts from 1, and (eta, mu) after it."""
    lr, lambd = number(options, "lr"), number(options, "lambd")
    eta, mu = scalars
    following = quotient(lr, _power(1 + lambd * lr * step, number(options, "alpha")))
    return ASGDCoefficients(
        shrink=1 - lambd * eta,
        negative_eta=-eta,
        mu=mu,
        restarts=mu == 1,
        weight_decay=number(options, "weight_decay"),
        maximize=flag(options, "maximize"),
    ), (following, 1 / max(1, step - number(options, "t0")))


def _power(base: float, exponent: float) -> float:
    """Return `base` to the power of `exponent`; inf if Python raises, NaN if there is no real result."""
    with np.errstate(all="ignore"):
        return base**exponent if isinstance(base, np.float32) else float(np.float64(base) ** exponent)


def update(c: ASGDCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    np.multiply(block.weights, c.shrink, out=block.out)
    add(block.out, gradient, c.negative_eta, out=block.out, scratch=scratch)
    ax = block.state["ax"]
    if c.restarts:
        np.copyto(ax, block.out)
    else:
        apart = np.subtract(block.out, ax, out=scratch)
        np.add(ax, np.multiply(apart, c.mu, out=apart), out=ax)


def fused(
    c: ASGDCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    (ax,) = state
    for i in range(out.size):
        direction = gradient[i]
        if c.maximize:
            direction = -direction
        if c.weight_decay != 0:
            direction = direction + weights[i] * c.weight_decay
        weight = weights[i] * c.shrink + direction * c.negative_eta
        out[i] = weight
        ax[i] = weight if c.restarts else ax[i] + (weight - ax[i]) * c.mu


ASGD = Elementwise(
    name="asgd",
    title="ASGD",
    doc="ASGD: plain steps of shrinking size, and beside the weights an average of them.",
    options=(
        learning_rate(1e-2),
        Option("lambd", "float", 1e-4, doc="decay of the weights, and of the step size"),
        Option("alpha", "float", 0.75, doc="power with which the step size shrinks"),
        Option("t0", "float", 1e6, doc="step from which on the average counts all weights alike"),
        penalty(),
        MAXIMIZE,
    ),
    state=(scalar_field("eta", lambda o: number(o, "lr")), scalar_field("mu", lambda _: 1.0), StateField("ax")),
    advance=advance,
    update=update,
    scratch=2,
    fused=fused,
)
