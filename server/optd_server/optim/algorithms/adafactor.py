"""Adafactor, as torch defines it.

Source of names, defaults, ranges and the order of operations: ``torch/optim/_adafactor.py``,
``_single_tensor_adafactor``; the formula is Shazeer & Stern, https://arxiv.org/abs/1804.04235, without momentum. Norms
and means are added up in float64 here, and in the data's dtype there.
"""

from typing import Any, cast

import numpy as np

from optd_server.optim.algorithm import Array, Parameter, Parameterwise, Shape, StateField
from optd_server.optim.algorithms.options import MAXIMIZE, NOT_NEGATIVE, decoupled_decay, learning_rate
from optd_server.optim.arithmetic import lerp, norm
from optd_server.optim.option import Option, Options, Range, flag, number


def update(options: Options, parameter: Parameter) -> None:
    """Apply one step to one parameter."""
    lr, step = number(options, "lr"), float(parameter.step)
    eps1, eps2 = _epsilons(options, parameter.weights.dtype)
    share = step ** number(options, "beta2_decay")
    rate = min(lr, 1 / step**0.5)
    size = parameter.weights.size**0.5
    alpha = max(eps2, float(norm(parameter.weights)) / size) * rate
    np.multiply(parameter.weights, 1 - lr * number(options, "weight_decay"), out=parameter.out)
    gradient = np.negative(parameter.gradient) if flag(options, "maximize") else parameter.gradient
    variance = (_factored if gradient.ndim > 1 else _whole)(parameter, gradient, share, eps1)
    np.maximum(variance, eps1 * eps1, out=variance)
    direction = np.divide(1, np.sqrt(variance, out=variance), out=variance)
    np.multiply(direction, gradient, out=direction)
    denominator = max(1.0, float(norm(direction)) / (size * number(options, "d")))
    np.multiply(direction, -alpha / denominator, out=direction)
    np.add(parameter.out, direction, out=parameter.out)


def _factored(parameter: Parameter, gradient: Array, share: float, eps1: float) -> Array:
    """Return the second moment of each element of matrices, estimated from those of their rows and columns."""
    row_var, col_var = parameter.state["row_var"], parameter.state["col_var"]
    for moment, axis in ((row_var, -1), (col_var, -2)):
        mean = _norms(gradient, axis)
        np.multiply(mean, mean, out=mean)
        np.divide(mean, gradient.shape[axis], out=mean)
        _mix(moment, mean, share)
    middle = row_var.mean(axis=-2, keepdims=True, dtype=np.float64).astype(row_var.dtype)
    variance: Array = np.divide(row_var * col_var, np.maximum(middle, eps1))
    return variance


def _whole(parameter: Parameter, gradient: Array, share: float, _: float) -> Array:
    """Return the second moment of each element of a vector or a number."""
    variance = parameter.state["variance"]
    _mix(variance, gradient * gradient, share)
    return variance.copy()


def _mix(moment: Array, new: Array, share: float) -> None:
    """Move a running average towards `new`, by `share` of the way."""
    lerp(moment, new, float(moment.dtype.type(share)), out=moment, scratch=np.empty_like(moment))


def _norms(array: Array, axis: int) -> Array:
    """Return the L2 norms along one of the last two axes, which stays with size 1."""
    kept = "i" if axis == -1 else "j"
    squares = np.einsum(f"...ij,...ij->...{kept}", array, array, dtype=np.float64)
    return np.expand_dims(np.sqrt(squares.astype(array.dtype)), axis)


def _epsilons(options: Options, dtype: np.dtype[Any]) -> tuple[float, float]:
    first, second = cast(tuple[float | None, float], options["eps"])
    return float(np.finfo(dtype).eps) if first is None else first, second


def _row_shape(shape: Shape) -> Shape | None:
    return (*shape[:-1], 1) if len(shape) > 1 else None


def _column_shape(shape: Shape) -> Shape | None:
    return (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else None


def _vector_shape(shape: Shape) -> Shape | None:
    return shape if len(shape) <= 1 else None


ADAFACTOR = Parameterwise(
    name="adafactor",
    title="Adafactor",
    doc="Adafactor: Adam's scaling with a second moment kept only for the rows and columns of each matrix.",
    options=(
        learning_rate(1e-2),
        Option(
            "beta2_decay",
            "float",
            -0.8,
            Range(high=0),
            doc="At step t the second moment takes `t ** beta2_decay` of the new squared gradient.",
        ),
        Option(
            "eps",
            "floats",
            (None, 1e-3),
            entries=(Range(low=0, nullable=True), NOT_NEGATIVE),
            doc="Lower bound of the root of the second moment (None: the machine epsilon of the dtype), and lower "
            "bound of the root mean square of the weights, which scales the step.",
        ),
        Option(
            "d",
            "float",
            1.0,
            Range(low=1),
            doc="A step whose root mean square is above this is scaled down to it, before `lr` counts.",
        ),
        decoupled_decay(0.0),
        MAXIMIZE,
    ),
    state=(
        StateField("row_var", shape=_row_shape),
        StateField("col_var", shape=_column_shape),
        StateField("variance", shape=_vector_shape),
    ),
    update=update,
)
