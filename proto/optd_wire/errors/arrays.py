"""Errors about the arrays that a caller hands over: parameters, gradients and state."""

from optd_wire.errors.base import InvalidArgument


class NotAnArray(InvalidArgument):
    """An array is expected, and the value is none, or is one that cannot be updated in place."""

    reason = "NOT_AN_ARRAY"
    template = "{what} must be {wanted}, got {got}"


class UnsupportedDtype(InvalidArgument):
    """Parameters cannot have this dtype."""

    reason = "UNSUPPORTED_DTYPE"
    template = "parameter {parameter!r}: dtype {dtype} is not supported; supported are {supported}"


class ShapeMismatch(InvalidArgument):
    """The shape of an array differs from the shape of its parameter."""

    reason = "SHAPE_MISMATCH"
    template = "{what} of parameter {parameter!r} must have shape {expected}, got {got}"


class DtypeMismatch(InvalidArgument):
    """The dtype of an array or frame does not fit its parameter."""

    reason = "DTYPE_MISMATCH"
    template = "{what} of parameter {parameter!r} must have dtype {expected}, got {got}"


class StructureMismatch(InvalidArgument):
    """The structure of gradients or state differs from the structure of the parameters."""

    reason = "STRUCTURE_MISMATCH"
    template = "{what} must have {expected}, got {got}"
