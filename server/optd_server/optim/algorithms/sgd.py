"""Stochastic gradient descent, with momentum as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/sgd.py``, ``_single_tensor_sgd``.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import MAXIMIZE, NOT_NEGATIVE, learning_rate, penalty
from optd_server.optim.arithmetic import add, directed
from optd_server.optim.option import Constraint, Option, Options, flag, number
from optd_server.optim.row_support import RowSupport


class SgdCoefficients(NamedTuple):
    """The numbers of a step; none depends on the step count."""

    negative_lr: Number
    momentum: float
    kept: float
    """The part of the gradient that enters the momentum buffer: 1 - dampening."""
    weight_decay: float
    nesterov: bool
    maximize: bool
    has_momentum: bool
    """Whether there is a momentum buffer: `momentum` may round to 0 in the data's dtype."""


def coefficients(options: Options, _: int) -> SgdCoefficients:
    """Return the numbers of a step."""
    return SgdCoefficients(
        negative_lr=-number(options, "lr"),
        momentum=number(options, "momentum"),
        kept=1 - number(options, "dampening"),
        weight_decay=number(options, "weight_decay"),
        nesterov=flag(options, "nesterov"),
        maximize=flag(options, "maximize"),
        has_momentum=_has_momentum(options),
    )


def _has_momentum(options: Options) -> bool:
    return number(options, "momentum") != 0


def update(c: SgdCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch = block.scratch
    direction = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    buffer = block.state.get("momentum_buffer")
    if buffer is not None:
        if block.fresh:
            # torch clones the first gradient: dampening counts from the second on.
            np.copyto(buffer, direction)
        else:
            np.multiply(buffer, c.momentum, out=buffer)
            if c.kept == 1:  # saves a pass, same bits
                np.add(buffer, direction, out=buffer)
            else:
                add(buffer, direction, c.kept, out=buffer, scratch=scratch)
        if c.nesterov:
            add(direction, buffer, c.momentum, out=changed, scratch=scratch)
            direction = changed
        else:
            direction = buffer
    add(block.weights, direction, c.negative_lr, out=block.out, scratch=scratch)


def fused(
    c: SgdCoefficients, fresh: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    (buffer,) = state
    # The direction is written twice: a loop that only sometimes touches a buffer does not become vector code.
    if c.has_momentum:
        for i in range(out.size):
            direction = gradient[i]
            if c.maximize:
                direction = -direction
            if c.weight_decay != 0:
                direction = direction + weights[i] * c.weight_decay
            momentum = buffer[i] * c.momentum + direction * c.kept
            if fresh:
                momentum = direction
            buffer[i] = momentum
            if c.nesterov:
                momentum = direction + momentum * c.momentum
            out[i] = weights[i] + momentum * c.negative_lr
    else:
        for i in range(out.size):
            direction = gradient[i]
            if c.maximize:
                direction = -direction
            if c.weight_decay != 0:
                direction = direction + weights[i] * c.weight_decay
            out[i] = weights[i] + direction * c.negative_lr


SGD = Elementwise(
    name="sgd",
    title="SGD",
    doc="Stochastic gradient descent, optionally with momentum.",
    options=(
        learning_rate(1e-3),
        Option("momentum", "float", 0.0, NOT_NEGATIVE, doc="momentum factor"),
        Option("dampening", "float", 0.0, doc="dampening for momentum"),
        penalty(),
        Option("nesterov", "bool", False, doc="Nesterov momentum; needs momentum > 0 and no dampening"),
        MAXIMIZE,
    ),
    constraints=(
        # torch, in its constructor: "Nesterov momentum requires a momentum and zero dampening"
        Constraint(
            "false unless momentum > 0 and dampening = 0",
            lambda o: flag(o, "nesterov") and (number(o, "momentum") <= 0 or number(o, "dampening") != 0),
            option="nesterov",
            of_defaults=True,
        ),
    ),
    state=(StateField("momentum_buffer", _has_momentum, seeded=True),),
    # Momentum moves a row even after its gradient has become zero.
    rows=RowSupport(whole=_has_momentum, zero=("weight_decay",)),
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
