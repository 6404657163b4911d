"""Delayed Nesterov, the outer optimizer of asynchronous local steps; torch does not have it.

Liu et al., "Asynchronous Local-SGD Training for Language Modeling", https://arxiv.org/abs/2401.09135, algorithm 3. Of N
gradients g each moves the weights by its own part, and only their mean enters the momentum m:

    s += g
    every N-th step:  m = β m + s / N;  θ -= lr ((1 - cN + c) β m + g / N);  s = 0
    other steps:      θ -= lr (c β m + g / N)

So N steps move the weights by the mean of their gradients, and by β m once in all: with N = 1 this is Nesterov
momentum as torch has it. A plain Nesterov step for each gradient that arrives would add to the momentum N times as
often as a synchronous one, from gradients of different weights, and overshoot.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import FRACTION, learning_rate
from optd_server.optim.arithmetic import add
from optd_server.optim.option import Constraint, Option, Options, Range, number


class DelayedNesterovCoefficients(NamedTuple):
    """The numbers of a step."""

    negative_lr: Number
    momentum: float
    share: float
    """What each gradient, and their sum, is multiplied by: 1 / N."""
    active: float
    """The factor of the momentum in this step, β included."""
    refreshes: bool
    """Whether this is an N-th step of the parameter."""


def coefficients(options: Options, step: int) -> DelayedNesterovCoefficients:
    """Return the numbers of a step."""
    delay, momentum, activation = _delay(options), number(options, "momentum"), number(options, "activation")
    refreshes = step % delay == 0
    return DelayedNesterovCoefficients(
        negative_lr=-number(options, "lr"),
        momentum=momentum,
        share=1 / delay,
        active=(1 - activation * delay + activation if refreshes else activation) * momentum,
        refreshes=refreshes,
    )


def _delay(options: Options) -> int:
    return int(number(options, "delay"))


def update(c: DelayedNesterovCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    direction, scratch = block.scratch
    momentum, gathered = block.state["momentum_buffer"], block.state["gradient_sum"]
    np.add(gathered, block.gradient, out=gathered)
    if c.refreshes:
        np.multiply(momentum, c.momentum, out=momentum)
        add(momentum, gathered, c.share, out=momentum, scratch=scratch)
        gathered.fill(0)
    np.multiply(block.gradient, c.share, out=direction)
    add(direction, momentum, c.active, out=direction, scratch=scratch)
    add(block.weights, direction, c.negative_lr, out=block.out, scratch=scratch)


def fused(
    c: DelayedNesterovCoefficients,
    _: bool,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    state: tuple[Vector, ...],
) -> None:
    """Apply one step to a tile: `update`, element by element."""
    momentum, gathered = state
    zero = out.dtype.type(0)
    if c.refreshes:
        for i in range(out.size):
            fresh = momentum[i] * c.momentum + (gathered[i] + gradient[i]) * c.share
            momentum[i] = fresh
            gathered[i] = zero
            out[i] = weights[i] + (gradient[i] * c.share + fresh * c.active) * c.negative_lr
    else:
        for i in range(out.size):
            gathered[i] = gathered[i] + gradient[i]
            out[i] = weights[i] + (gradient[i] * c.share + momentum[i] * c.active) * c.negative_lr


DELAYED_NESTEROV = Elementwise(
    name="delayed_nesterov",
    title="DelayedNesterov",
    doc="Nesterov momentum that takes the mean of several gradients at a time, for asynchronous local steps.",
    options=(
        learning_rate(0.7),
        Option(
            "momentum", "float", 0.9, FRACTION, doc="How much of itself the momentum keeps each time it is refreshed."
        ),
        Option(
            "delay",
            "int",
            1,
            Range(low=1),
            doc="After this many steps the momentum takes in the mean of their gradients; the number of workers is "
            "usual. Each gradient is divided by it.",
        ),
        Option(
            "activation",
            "float",
            0.0,
            Range(low=0, high=1),
            doc="The share of the momentum that each step between two refreshes applies; 0: the step that refreshes "
            "it applies all.",
        ),
    ),
    constraints=(
        Constraint(
            "at most 1 / delay",
            lambda o: number(o, "activation") * number(o, "delay") > 1,
            option="activation",
            of_defaults=True,
        ),
    ),
    state=(StateField("momentum_buffer"), StateField("gradient_sum")),
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
