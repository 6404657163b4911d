"""The names that a package needs to declare an algorithm of its own. See docs/extending.md.

These names are stable. Everything else in the server may change in any release.
"""

from optd_server.optim.algorithm import (
    Array,
    Block,
    Elementwise,
    Evaluation,
    Iterative,
    Number,
    Parameter,
    Parameterwise,
    Progress,
    Remembered,
    StateField,
    Vector,
    scalar_field,
)
from optd_server.optim.algorithms.options import BETAS, MAXIMIZE, epsilon, learning_rate, penalty
from optd_server.optim.arithmetic import add, addcdiv, addcmul, directed, lerp
from optd_server.optim.option import Constraint, Option, Options, Range, flag, floats, integer, number, text
from optd_server.optim.row_support import RowSupport

__all__ = [
    "BETAS",
    "MAXIMIZE",
    "Array",
    "Block",
    "Constraint",
    "Elementwise",
    "Evaluation",
    "Iterative",
    "Number",
    "Option",
    "Options",
    "Parameter",
    "Parameterwise",
    "Progress",
    "Range",
    "Remembered",
    "RowSupport",
    "StateField",
    "Vector",
    "add",
    "addcdiv",
    "addcmul",
    "directed",
    "epsilon",
    "flag",
    "floats",
    "integer",
    "learning_rate",
    "lerp",
    "number",
    "penalty",
    "scalar_field",
    "text",
]
