"""The backends by name."""

from typing import Literal, TypeAlias

from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BlockedBackend

Choice: TypeAlias = Literal["auto", "numba", "numpy"]


class BackendUnavailable(Exception):
    """A backend that does not work here. The message is the reason, in one line."""


def choose(name: Choice = "auto") -> Backend:
    """Return a backend; auto is numba if it works, else numpy, whose `reason` says why.

    Blocks for as long as it takes to import numba and to load or compile a first kernel. Raises
    `BackendUnavailable` if numba is asked for and does not work.
    """
    if name == "numpy":
        return BlockedBackend()
    try:
        return _numba()
    except BackendUnavailable as unavailable:
        if name == "numba":
            raise
        return BlockedBackend(reason=f"numba: {unavailable}")


def _numba() -> Backend:
    # Problems with a compiler, an instruction set or a shared library show here, as exceptions of any kind.
    try:
        from optd_server.optim.backends.compiled.backend import CompiledBackend  # noqa: PLC0415

        return CompiledBackend()
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise BackendUnavailable(lines[0]) from problem
