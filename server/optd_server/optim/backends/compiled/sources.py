"""What the compiled code of a function depends on: the sources of the modules that contribute to it."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

_BY_VERSION = ("numba", "numpy", "llvmlite")
"""Packages whose version determines what they compile to."""


def digest(function: Callable[..., Any]) -> str | None:
    """Return a digest that changes whenever the compiled code of a function may change; None if there is no telling.

    A function that numba compiles may call others, of its own module or of others, which again call others. The sources
    of all these modules count, and the numbers that they import. A function typed in at a prompt has no source.
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
    except (OSError, TypeError):  # no source, or no such module
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
    """Yield the values of the names in a function's code: in its closure, in its module, in modules named there."""
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
