"""Load the algorithms of other packages, which declare them as entry points of the group `optd.optimizers`.

Only packages that the server's operator has installed are found. Nothing that a client sends makes a server load code.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from optd_server.optim.algorithm import Algorithm, Elementwise, Iterative, Parameterwise
from optd_server.optim.algorithms import registry
from optd_server.optim.iterative import Searches
from optd_server.optim.option import resolve
from optd_server.optim.segment import SegmentState
from optd_server.optim.step import apply

GROUP = "optd.optimizers"
TRIED = ((), (3,), (2, 3))
"""Shapes of the parameters with which a new algorithm is tried out."""


class PluginError(Exception):
    """An entry point without a usable algorithm; the message names it and its package."""


def load(found: Iterable[EntryPoint] | None = None) -> tuple[str, ...]:
    """Register the algorithms of all installed packages; return their names.

    Raises `PluginError` for the first one that does not work. Otherwise its absence would be noticed only when somebody
    trains with it.
    """
    names = []
    for point in sorted(entry_points(group=GROUP) if found is None else found, key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module
        try:
            algorithm = _algorithm_of(point)
            _try_out(algorithm)
            registry.register(algorithm, package)
        except Exception as problem:
            text = f"optimizer {point.name!r} of package {package}: {_line(problem)}"
            raise PluginError(text) from problem
        names.append(algorithm.name)
    return tuple(names)


def _algorithm_of(point: EntryPoint) -> Algorithm:
    algorithm = point.load()
    if not isinstance(algorithm, Elementwise | Parameterwise | Iterative):
        kinds = "an Elementwise, Parameterwise or Iterative algorithm"
        raise TypeError(f"{point.value} must be {kinds}, got {type(algorithm)}")
    if algorithm.name != point.name:
        raise ValueError(f"{point.value} must have the entry point's name, got {algorithm.name!r}")
    return algorithm


def _try_out(algorithm: Algorithm) -> None:
    """Take two steps with the default options, so that a mistake shows when the server starts."""
    shapes = [shape for shape in TRIED if algorithm.shape_problem is None or algorithm.shape_problem(shape) is None]
    sizes = [int(np.prod(shape)) for shape in shapes]
    segment = SegmentState(sizes, np.float32, shapes=shapes)
    options = resolve(algorithm.options, {})
    weights = np.linspace(-1, 1, segment.count, dtype=np.float32)
    searches, everywhere = Searches(), np.ones(len(shapes), np.bool_)
    for _ in range(2):
        out = np.full_like(weights, np.nan)
        if isinstance(algorithm, Iterative):
            searches.move(
                algorithm,
                options,
                segment,
                weights=weights,
                gradient=weights,
                out=out,
                present=everywhere,
                loss=float(np.dot(weights, weights)) / 2,
            )
        else:
            apply(algorithm, [options], segment, weights=weights, gradient=weights, out=out)
        if not np.isfinite(out).all():
            raise ValueError(f"a step with the default options gives weights that are not finite: {out.tolist()}")
        weights = out


def _line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0]
