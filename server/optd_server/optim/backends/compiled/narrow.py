"""Steps on weights of 16 bits with the kernels for float32: widened, stepped and rounded again, block by block."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from optd_server.optim import runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, Elementwise, Vector
from optd_server.optim.backends.base import Work
from optd_server.optim.backends.compiled.kernels import TILE
from optd_server.optim.threads import share


def fields_of(algorithm: Elementwise, state: Mapping[str, Vector], dtype: np.dtype[Any]) -> tuple[Vector, ...]:
    """Return the state as a kernel takes it: an array for each field, an empty one where it is not needed."""
    return tuple(state.get(field.name, _nothing(dtype)) for field in algorithm.arrays)


@cache
def _nothing(dtype: np.dtype[Any]) -> Vector:
    return np.empty(0, dtype)


def step(work: Work, run: Callable[..., None], threads: int) -> None:
    """Take one step with a kernel of `kernels.stepper`; see `Backend.step`."""
    dtype = work.gradient.dtype
    fields, records = fields_of(work.algorithm, work.state, dtype), work.table.records
    with_masters = work.table.with_field(MASTER_WEIGHTS.name)
    masters = work.state[MASTER_WEIGHTS.name] if with_masters.any() else None

    def on_blocks(first: int, last: int) -> None:
        wide, new = np.empty(runs.BLOCK, dtype), np.empty(runs.BLOCK, dtype)
        tile = np.empty(TILE, dtype)
        with np.errstate(all="ignore"):
            for start in range(first, last, runs.BLOCK):
                here = slice(start, min(start + runs.BLOCK, last))
                current, following = wide[: here.stop - start], new[: here.stop - start]
                inside = _within(work.runs, here)
                held = None if masters is None else np.repeat(with_masters[inside.kinds], np.diff(inside.starts))
                np.copyto(current, work.weights[here])
                if masters is not None and held is not None:
                    np.copyto(current, masters[here], where=held)
                current.flags.writeable = False
                state = tuple(field[here] for field in fields)
                gradient = work.gradient[here]
                run(current, gradient, following, state, records, *inside, 0, len(current), -1, tile)
                work.out[here] = following
                if masters is not None and held is not None:
                    np.copyto(masters[here], following, where=held)

    share(on_blocks, len(work.out), threads)


def _within(found: runs.Runs, here: slice) -> runs.Runs:
    """Return the runs of a range, counted from its beginning."""
    first = int(np.searchsorted(found.starts, here.start, side="right")) - 1
    last = int(np.searchsorted(found.starts, here.stop, side="left"))
    starts = np.clip(found.starts[first : last + 1], here.start, here.stop) - here.start
    return runs.Runs(starts, found.kinds[first:last])
