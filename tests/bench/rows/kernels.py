"""Kernels alone: one step on memory that is there, without a server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from bench.ours import Kernel
from bench.row import Row, Side, Sides, seconds
from bench.sizes import Shapes, Size, mixed, single

ALGORITHMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Adam": ("adam", {"lr": 1e-3}),
    "AdamW": ("adamw", {"lr": 1e-3, "weight_decay": 0.01}),
    "SGD with momentum": ("sgd", {"lr": 1e-3, "momentum": 0.9}),
}


def _one(size: Size) -> Shapes:
    return single(size.kernel)


def _many(size: Size) -> Shapes:
    return mixed(size.many, size.parameters)


def _against_torch(
    title: str, backend: str, how: str, shapes: Callable[[Size], Shapes] = _one
) -> Callable[[Size], AbstractContextManager[Sides]]:
    """A kernel of ours beside torch with `how=True`."""
    algorithm, options = ALGORITHMS[title]

    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        from bench.references.local_torch import local_torch

        mine = Kernel(algorithm, options, shapes(size), backend)
        with local_torch(algorithm, {**options, how: True}, shapes(size)) as theirs:
            yield Sides(Side(seconds(mine.step), mine.weights), Side(seconds(theirs.step), theirs.weights))

    return build


ROWS = (
    *(
        Row(
            name=f"kernel: {title}, {{kernel}}, numba",
            reference="torch fused",
            build=_against_torch(title, "numba", "fused"),
            aim=1.1,
        )
        for title in ALGORITHMS
    ),
    *(
        Row(
            name=f"kernel: {title}, {{kernel}}, numpy",
            reference="torch foreach",
            build=_against_torch(title, "numpy", "foreach"),
            aim=0.8,
        )
        for title in ALGORITHMS
    ),
    Row(
        name="kernel: Adam, {many} in {parameters} parameters",
        reference="torch fused",
        build=_against_torch("Adam", "auto", "fused", _many),
        aim=0.7,
    ),
)
