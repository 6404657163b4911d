"""Muon, as torch defines it: for matrices only.

Source of names, defaults, ranges and the order of operations: ``torch/optim/_muon.py``, ``_single_tensor_muon`` and
``_zeropower_via_newtonschulz``; the method is Jordan, https://kellerjordan.github.io/posts/muon/. The iteration runs in
bfloat16 there. Here numbers are rounded to bfloat16 at the same places, and added up in float32. If torch adds up in
another order, a result may round to its neighbour, and later iterations carry the difference on.
"""

import math

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Array, Parameter, Parameterwise, Shape, StateField
from optd_server.optim.algorithms.options import NOT_NEGATIVE, decoupled_decay, learning_rate
from optd_server.optim.arithmetic import lerp, norm, to_bfloat16
from optd_server.optim.option import ANY, Option, Options, Range, flag, floats, integer, number, text

Matrix = npt.NDArray[np.float32]


def update(options: Options, parameter: Parameter) -> None:
    """Apply one step to one matrix."""
    lr, momentum = number(options, "lr"), number(options, "momentum")
    buffer = parameter.state["momentum_buffer"]
    as_data, scratch = buffer.dtype.type, np.empty_like(buffer)
    lerp(buffer, parameter.gradient, float(as_data(1 - momentum)), out=buffer, scratch=scratch)
    wanted = buffer
    if flag(options, "nesterov"):
        wanted = np.empty_like(buffer)
        lerp(parameter.gradient, buffer, float(as_data(momentum)), out=wanted, scratch=scratch)
    direction = _orthogonal(
        wanted, floats(options, "ns_coefficients"), integer(options, "ns_steps"), number(options, "eps")
    )
    np.multiply(parameter.weights, 1 - lr * number(options, "weight_decay"), out=parameter.out)
    rate = _adjusted(lr, text(options, "adjust_lr_fn"), buffer.shape)
    np.add(parameter.out, direction.astype(buffer.dtype) * -rate, out=parameter.out)


def _orthogonal(matrix: Array, coefficients: tuple[float, ...], steps: int, eps: float) -> Matrix:
    """Return approximately the nearest matrix with orthogonal rows or columns, by Newton-Schulz iteration."""
    a, b, c = map(np.float32, coefficients)
    found = to_bfloat16(matrix)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        found = np.ascontiguousarray(found.T)
    found = to_bfloat16(found / np.maximum(to_bfloat16(norm(found)), to_bfloat16(eps)))
    for _ in range(steps):
        gram = to_bfloat16(found @ found.T)
        change = to_bfloat16(b * gram + c * (gram @ gram))
        found = to_bfloat16(a * found + change @ found)
    return found.T if tall else found


def _adjusted(lr: float, rule: str | None, shape: Shape) -> float:
    rows, columns = shape
    if rule == "match_rms_adamw":
        return lr * (0.2 * math.sqrt(max(rows, columns)))
    return lr * math.sqrt(max(1, rows / columns))


def _shape_problem(shape: Shape) -> str | None:
    return None if len(shape) == 2 else "have 2 dimensions"


MUON = Parameterwise(
    name="muon",
    title="Muon",
    doc="Muon: steps along the orthogonalized momentum; for the weight matrices of hidden layers only.",
    options=(
        learning_rate(1e-3),
        decoupled_decay(0.1),
        Option("momentum", "float", 0.95, NOT_NEGATIVE, doc="How much of itself the momentum keeps at each step."),
        Option("nesterov", "bool", True, doc="Use Nesterov momentum."),
        Option(
            "ns_coefficients",
            "floats",
            (3.4445, -4.7750, 2.0315),
            entries=(ANY, ANY, ANY),
            doc="The coefficients a, b and c of the Newton-Schulz iteration that orthogonalizes a matrix.",
        ),
        Option("eps", "float", 1e-7, doc="Lower bound of the norm that a matrix is divided by."),
        Option(
            "ns_steps", "int", 5, Range(high=100, high_open=True), doc="How many Newton-Schulz iterations a step makes."
        ),
        Option(
            "adjust_lr_fn",
            "text",
            None,
            nullable=True,
            choices=("original", "match_rms_adamw"),
            doc="How the shape of a matrix scales `lr`: as in Muon's original implementation, or to match the root "
            "mean square of AdamW's steps. None: 'original'.",
        ),
    ),
    state=(StateField("momentum_buffer"),),
    shape_problem=_shape_problem,
    update=update,
)
