"""Gradients of some rows of a table: does a larger table take longer, and what does torch take beside it?"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from bench import ours
from bench.row import MILLISECONDS, Row, Side, Sides, seconds
from bench.sizes import Size

COLUMNS = 8
LEARNING_RATE = 0.1
GRADIENTS = 16
"""How many different ones take turns: always the same rows would lie in the processor's cache."""

Rows = tuple[np.ndarray, np.ndarray]


def _gradients(rows: int, touched: int) -> list[Rows]:
    rng = np.random.default_rng(1)
    return [
        (rng.choice(rows, touched, replace=False), rng.standard_normal((touched, COLUMNS), dtype=np.float32))
        for _ in range(GRADIENTS)
    ]


def _median_of(times: int, work: Callable[[], Any]) -> Callable[[], float]:
    measure = seconds(work)
    return lambda: statistics.median(measure() for _ in range(times))


@contextmanager
def _ours(size: Size, rows: int) -> Iterator[Side]:
    gradients = cycle(_gradients(rows, size.touched))
    with ours.server() as server, ours.table(server.address, (rows, COLUMNS), LEARNING_RATE) as table:
        yield Side(_median_of(size.row_steps, lambda: table.step(next(gradients))), table.weights)


@contextmanager
def _beside_few(rows: Callable[[Size], int], size: Size) -> Iterator[Sides]:
    with _ours(size, rows(size)) as large, _ours(size, size.few_rows) as small:
        yield Sides(large, small, tolerance=None)


@contextmanager
def _beside_torch(size: Size) -> Iterator[Sides]:
    table = torch.nn.Parameter(torch.zeros(size.plenty_rows, COLUMNS))
    optimizer = torch.optim.SparseAdam([table], lr=LEARNING_RATE)
    sparse = [
        torch.sparse_coo_tensor(ids[None], values, table.shape, check_invariants=True)
        for ids, values in _gradients(size.plenty_rows, size.touched)
    ]
    gradients = cycle(sparse)

    def step() -> None:
        table.grad = next(gradients)
        optimizer.step()

    with _ours(size, size.plenty_rows) as mine:
        theirs = Side(_median_of(size.row_steps, step), lambda: table.detach().numpy().reshape(-1).copy())
        yield Sides(mine, theirs)


ROWS = (
    Row(
        name="step() of {touched} rows of {some_rows}, SparseAdam, same host, median",
        reference="of {few_rows}",
        build=partial(_beside_few, lambda size: size.some_rows),
        unit=MILLISECONDS,
        aim=1.5,
    ),
    Row(
        name="step() of {touched} rows of {plenty_rows}, SparseAdam, same host, median",
        reference="of {few_rows}",
        build=partial(_beside_few, lambda size: size.plenty_rows),
        unit=MILLISECONDS,
        aim=1.5,
    ),
    Row(
        name="step() of {touched} rows of {plenty_rows}, SparseAdam, same host, beside torch",
        reference="torch.optim.SparseAdam in one process",
        build=_beside_torch,
        unit=MILLISECONDS,
    ),
)
