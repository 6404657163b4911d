"""Warnings that point at the caller's line, past all frames of this package and of torch."""

import sys
import warnings

_BETWEEN = ("optd", "torch", "contextlib", "functools")


def warn_caller(message: str) -> None:
    """Warns at the innermost call that comes neither from this package nor from torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
