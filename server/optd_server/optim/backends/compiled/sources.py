"""What the compiled code of a function depends on: the sources of the modules that its code comes from."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

_BY_VERSION = ("numba", "numpy", "llvmlite")
"""Packages of which the version says what they compile to."""


def digest(function: Callable[..., Any]) -> str | None:
    """Return what changes when the compiled code of a function may; None where that cannot be known.

    A function that numba compiles may call others, of its own module or of others, and those again others. The
    sources of all these modules count, and the numbers that they have from elsewhere. A function that was typed in at
    a prompt has no source to go by.
    """
    modules: dict[str, ModuleType | None] = {}
    numbers: list[str] = []
    for called in _reached(function):
        modules[called.__module__] = sys.modules.get(called.__module__)
        numbers += [f"{name} = {value!r}" for name, value in _named(called) if isinstance(value, int | float)]
    found = hashlib.sha256("\n".join(sorted(numbers)).encode())
    try:
        for name in sorted(modules):
            found.update(inspect.getsource(modules[name]).encode())  # type: ignore[arg-type]
    except (OSError, TypeError):  # there is none, or no such module
        return None
    return found.hexdigest()[:16]


def _reached(function: Callable[..., Any]) -> Iterator[FunctionType]:
    """Yield a function and all that it may call, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        found = waiting.pop()
        found = getattr(found, "py_func", found)  # of a dispatcher of numba's
        if not isinstance(found, FunctionType) or id(found) in seen:
            continue
        if found.__module__.partition(".")[0] in _BY_VERSION:
            continue
        seen.add(id(found))
        yield found
        waiting += [value for _, value in _named(found)]


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what the names in a function's code stand for: in its closure, in its module, in modules named there."""
    names = list(_names(function.__code__))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            yield from ((each, getattr(value, each)) for each in names if hasattr(value, each))
        elif value is not None:
            yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
