"""Compile all kernels ahead, for later processes: ``python -m optd_server.optim.backends``."""

import sys

from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.backends import registry

DTYPES = ("float32", "float64")


def main() -> int:
    """Compile, unless that is done already; return 1 if there is no compiler."""
    try:
        backend = registry.choose("numba")
    except registry.BackendUnavailable as unavailable:
        sys.stderr.write(f"no kernels: numba: {unavailable}\n")
        return 1
    for algorithm in ALGORITHMS.values():
        for dtype in DTYPES:
            backend.prepare(algorithm, dtype)
            sys.stdout.write(f"{backend.name}: {algorithm.name} {dtype}\n")
    # Not imported by name above: without numba there is no such module.
    from optd_server.optim.backends.compiled.cache import folder  # noqa: PLC0415

    sys.stdout.write(f"in {folder()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
