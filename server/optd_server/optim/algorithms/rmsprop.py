"""RMSprop, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/rmsprop.py``,
``_single_tensor_rmsprop``; the formula is Hinton's, lecture 6 of his course on neural networks (2012), and the centered
one is Graves, https://arxiv.org/abs/1308.0850, section 2.1. `eps` is added after the root.
"""

from typing import NamedTuple

import numpy as np

from optd_server.optim.algorithm import Block, Elementwise, Number, StateField, Vector
from optd_server.optim.algorithms.options import MAXIMIZE, NOT_NEGATIVE, epsilon, learning_rate, penalty
from optd_server.optim.arithmetic import add, addcdiv, addcmul, directed, lerp, minus_square
from optd_server.optim.option import Option, Options, flag, number


class RMSpropCoefficients(NamedTuple):
    """The numbers of a step; none depends on the step count."""

    negative_lr: Number
    alpha: float
    one_minus_alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool
    has_momentum: bool
    """Whether there is a momentum buffer: `momentum` may round to 0 in the data's dtype."""
    maximize: bool


def coefficients(options: Options, _: int) -> RMSpropCoefficients:
    """Return the numbers of a step."""
    alpha = number(options, "alpha")
    return RMSpropCoefficients(
        negative_lr=-number(options, "lr"),
        alpha=alpha,
        one_minus_alpha=1 - alpha,
        eps=number(options, "eps"),
        weight_decay=number(options, "weight_decay"),
        momentum=number(options, "momentum"),
        centered=_is_centered(options),
        has_momentum=_has_momentum(options),
        maximize=flag(options, "maximize"),
    )


def _is_centered(options: Options) -> bool:
    return flag(options, "centered")


def _has_momentum(options: Options) -> bool:
    return number(options, "momentum") > 0


def update(c: RMSpropCoefficients, block: Block) -> None:
    """Apply one step to a block."""
    changed, scratch, average = block.scratch
    gradient = directed(block, c.maximize, c.weight_decay, out=changed, scratch=scratch)
    square_avg = block.state["square_avg"]
    np.multiply(square_avg, c.alpha, out=square_avg)
    addcmul(square_avg, gradient, gradient, c.one_minus_alpha, out=square_avg, scratch=scratch)
    if c.centered:
        grad_avg = block.state["grad_avg"]
        lerp(grad_avg, gradient, c.one_minus_alpha, out=grad_avg, scratch=scratch)
        minus_square(square_avg, grad_avg, out=average)
        np.sqrt(average, out=average)
    else:
        np.sqrt(square_avg, out=average)
    np.add(average, c.eps, out=average)
    if c.has_momentum:
        buffer = block.state["momentum_buffer"]
        np.multiply(buffer, c.momentum, out=buffer)
        np.add(buffer, np.divide(gradient, average, out=scratch), out=buffer)
        add(block.weights, buffer, c.negative_lr, out=block.out, scratch=scratch)
    else:
        addcdiv(block.weights, gradient, average, c.negative_lr, out=block.out, scratch=scratch)


def fused(
    c: RMSpropCoefficients, _: bool, weights: Vector, gradient: Vector, out: Vector, state: tuple[Vector, ...]
) -> None:
    """Apply one step to a tile: `update`, element by element.

    `out` passes results from one loop to the next: a loop that only sometimes touches an array does not become vector
    code.
    """
    square_avg, momentum_buffer, grad_avg = state
    for i in range(out.size):
        out[i] = -gradient[i] if c.maximize else gradient[i]
        if c.weight_decay != 0:
            out[i] = out[i] + weights[i] * c.weight_decay
        square_avg[i] = square_avg[i] * c.alpha + out[i] * c.one_minus_alpha * out[i]
    if c.centered:
        far = abs(c.one_minus_alpha) >= 0.5
        factor = c.one_minus_alpha - out.dtype.type(1) if far else c.one_minus_alpha
        for i in range(out.size):
            nearer = out[i] if far else grad_avg[i]
            grad_avg[i] = nearer + (out[i] - grad_avg[i]) * factor
    if c.has_momentum:
        for i in range(out.size):
            variance = square_avg[i]
            if c.centered:
                wide = np.float64(grad_avg[i])
                variance = out.dtype.type(np.float64(variance) - wide * wide)
            momentum_buffer[i] = momentum_buffer[i] * c.momentum + out[i] / (np.sqrt(variance) + c.eps)
            out[i] = weights[i] + momentum_buffer[i] * c.negative_lr
    else:
        for i in range(out.size):
            variance = square_avg[i]
            if c.centered:
                wide = np.float64(grad_avg[i])
                variance = out.dtype.type(np.float64(variance) - wide * wide)
            out[i] = weights[i] + out[i] * c.negative_lr / (np.sqrt(variance) + c.eps)


RMSPROP = Elementwise(
    name="rmsprop",
    title="RMSprop",
    doc="RMSprop: gradients divided by the root of a running average of their squares.",
    options=(
        learning_rate(1e-2),
        Option(
            "alpha", "float", 0.99, NOT_NEGATIVE, doc="How much of themselves the running averages keep at each step."
        ),
        epsilon(1e-8),
        penalty(),
        Option(
            "momentum",
            "float",
            0.0,
            NOT_NEGATIVE,
            doc="How much of itself the momentum keeps at each step; 0: there is no momentum.",
        ),
        Option("centered", "bool", False, doc="Divide by the estimated standard deviation of the gradient instead."),
        MAXIMIZE,
    ),
    state=(
        StateField("square_avg"),
        StateField("momentum_buffer", _has_momentum),
        StateField("grad_avg", _is_centered),
    ),
    coefficients=coefficients,
    update=update,
    scratch=3,
    fused=fused,
)
