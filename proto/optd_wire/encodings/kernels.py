"""The choice of loops for the conversions: compiled if numba is installed, else numpy. Both give the same bits."""

import threading
from types import ModuleType

_lock = threading.Lock()
_found: list[ModuleType | None] = []


def kernels() -> ModuleType | None:
    """`optd_wire.encodings.compiled`, imported on first use because numba loads slowly; None without numba."""
    if not _found:
        with _lock:
            if not _found:
                _found.append(_import())
    return _found[0]


def _import() -> ModuleType | None:
    try:
        from optd_wire.encodings import compiled  # noqa: PLC0415 - on first use
    except ImportError:
        return None
    return compiled
