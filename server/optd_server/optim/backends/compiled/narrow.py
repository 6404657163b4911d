"""Steps on weights of 16 bits with the kernels for float32: widened, stepped and rounded again, block by block."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optd_server.optim import runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, Elementwise, Vector
from optd_server.optim.backends.base import Work
from optd_server.optim.backends.compiled.kernels import TILE
from optd_server.optim.threads import share


def fields_of(algorithm: Elementwise, state: Mapping[str, Vector], dtype: np.dtype[Any]) -> tuple[Vector, ...]:
    """Return the state as a kernel takes it: an array for each field, an empty one where it is not needed."""
    nothing = _nothing(dtype)
    return tuple([state.get(name, nothing) for name in algorithm.array_names])


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
                inside = _within(work.runs, here)
                following = new[: here.stop - start]
                kept = None if masters is None else _kept(masters[here], with_masters, inside)
                current = _current(work.weights[here], kept, wide)
                state = tuple(field[here] for field in fields)
                run(current, work.gradient[here], following, state, records, *inside, 0, len(current), -1, tile)
                work.out[here] = following
                if kept is not None:
                    np.copyto(kept.masters, following, where=kept.where)

    share(on_blocks, len(work.out), threads)


class _Kept(NamedTuple):
    """Master weights of a block, and which elements have them."""

    masters: Vector
    where: Any
    """A mask; True means all."""


def _kept(masters: Vector, with_masters: npt.NDArray[np.bool_], inside: runs.Runs) -> _Kept | None:
    found = with_masters[inside.kinds]
    if found.all():
        return _Kept(masters, True)
    return _Kept(masters, np.repeat(found, np.diff(inside.starts))) if found.any() else None


def _current(weights: Vector, kept: _Kept | None, wide: Vector) -> Vector:
    """Return the weights that a step begins with, which may lie in `wide`."""
    if kept is not None and kept.where is True:
        current = kept.masters.view()
    else:
        current = wide[: len(weights)]
        np.copyto(current, weights)
        if kept is not None:
            np.copyto(current, kept.masters, where=kept.where)
    current.flags.writeable = False
    return current


def _within(found: runs.Runs, here: slice) -> runs.Runs:
    """Return the runs of a range, counted from its beginning."""
    first = int(np.searchsorted(found.starts, here.start, side="right")) - 1
    last = int(np.searchsorted(found.starts, here.stop, side="left"))
    starts = np.clip(found.starts[first : last + 1], here.start, here.stop) - here.start
    return runs.Runs(starts, found.kinds[first:last])
