"""The backend that needs nothing but numpy.

It works block by block, so that an operation finds in the cache what the one before has written. A piece of work (see
`runs`) becomes a block for the algorithm's `update`: views of the flat arrays if it is contiguous, else gathered copies
with coefficients for each element. Updates are elementwise, so the bits are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim import finite, reduce, runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, Algorithm, Block, Vector
from optd_server.optim.backends.base import Backend, Work
from optd_server.optim.reduce import Contribution, Reduction
from optd_server.optim.shared_coefficients import TableRow
from optd_server.optim.threads import share

_Pieces: TypeAlias = Sequence[runs.Span | runs.Patchwork]
_Where: TypeAlias = slice | runs.Indices


class BlockedBackend(Backend):
    """numpy, block by block."""

    name = "numpy"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def prepare(self, algorithm: Algorithm, dtype: npt.DTypeLike) -> None:
        """Do nothing: there is nothing to compile."""

    def step(self, work: Work, threads: int) -> None:
        """See `Backend.step`."""
        pieces = list(runs.cut(work.runs, work.table.families))
        worker = _Worker(work)
        _ = work.table.records  # computed before threads share them
        share(lambda first, last: worker.update(pieces[first:last]), len(pieces), threads, grain=1, unit=1)

    def first_nonfinite(self, array: npt.NDArray[np.floating[Any]], threads: int = 1) -> int | None:
        """See `Backend.first_nonfinite`."""

        def work(first: int, last: int) -> int | None:
            found = finite.first_nonfinite(array[first:last])
            return None if found is None else first + found

        return min((found for found in share(work, len(array), threads) if found is not None), default=None)

    def reduce_mean(
        self, out: Vector, contributions: Sequence[Contribution], sizes: npt.NDArray[np.int64], threads: int = 1
    ) -> Reduction:
        """See `Backend.reduce_mean`."""
        return reduce.reduce_mean(out, contributions, sizes, threads)

    def accumulate(self, target: Vector, values: Vector, *, add: bool) -> bool:
        """See `Backend.accumulate`."""
        clean = True
        with np.errstate(all="ignore"):
            for start in range(0, len(target), runs.BLOCK):
                here = slice(start, start + runs.BLOCK)
                if add:
                    np.add(target[here], values[here], out=target[here])
                else:
                    np.copyto(target[here], values[here])
                clean = clean and finite.all_finite(target[here])
        return clean

    def scale(self, target: Vector, factor: float, threads: int = 1) -> None:
        """See `Backend.scale`."""
        with np.errstate(all="ignore"):
            rounded = target.dtype.type(factor)

        def work(first: int, last: int) -> None:
            with np.errstate(all="ignore"):
                np.multiply(target[first:last], rounded, out=target[first:last])

        share(work, len(target), threads)

    def copy(self, out: Vector, source: Vector, threads: int = 1) -> None:
        """See `Backend.copy`."""
        share(lambda first, last: np.copyto(out[first:last], source[first:last]), len(out), threads)


BLOCKED = BlockedBackend()


@dataclass(frozen=True)
class _Worker:
    """One step on one segment: what to do with each kind of its elements."""

    work: Work

    def update(self, pieces: _Pieces) -> None:
        """Update the elements of some pieces, on the calling thread."""
        largest = max(piece.count for piece in pieces)
        scratch = tuple(np.empty(largest, self.work.gradient.dtype) for _ in range(self.work.algorithm.scratch))
        # What overflows here overflows in torch, too, and silently. The setting is the thread's own.
        with np.errstate(all="ignore"):
            for piece in pieces:
                part = tuple(array[: piece.count] for array in scratch)
                if isinstance(piece, runs.Span):
                    self._update_span(piece, part)
                else:
                    self._update_patchwork(piece, part)

    def _update_span(self, piece: runs.Span, scratch: tuple[Vector, ...]) -> None:
        work = self.work
        here = slice(piece.start, piece.stop)
        if piece.kind == 0:
            np.copyto(work.out[here], work.weights[here])
            return
        row, fresh = work.table.of(piece.kind)
        block = self._block(here, row, fresh, scratch)
        work.algorithm.update(row.coefficients, block)
        if work.narrow:
            self._put(here, row, block.out)

    def _update_patchwork(self, piece: runs.Patchwork, scratch: tuple[Vector, ...]) -> None:
        work = self.work
        index = piece.elements()
        kind = int(piece.kinds[0])
        if kind == 0:
            work.out[index] = work.weights[index]
            return
        row, fresh = work.table.of(kind)
        block = self._block(index, row, fresh, scratch)
        work.algorithm.update(work.table.spread(piece.kinds, piece.lengths), block)
        self._put(index, row, block.out)
        for name, array in block.state.items():
            work.state[name][index] = array

    def _block(self, where: _Where, row: TableRow, fresh: bool, scratch: tuple[Vector, ...]) -> Block:
        """The elements at `where`: views for a slice, copies otherwise; weights in the dtype of the arithmetic."""
        work = self.work
        state = {name: work.state[name][where] for name in row.fields}
        weights = state.pop(MASTER_WEIGHTS.name, None)
        if weights is None:
            weights = work.weights[where].astype(work.gradient.dtype, copy=False)
        weights.flags.writeable = False
        gradient = work.gradient[where]
        in_place = isinstance(where, slice) and not work.narrow
        out = work.out[where] if in_place else np.empty_like(gradient)
        return Block(weights=weights, gradient=gradient, out=out, state=state, scratch=scratch, fresh=fresh)

    def _put(self, where: _Where, row: TableRow, new: Vector) -> None:
        """Write new weights, rounded to their dtype, and master weights, which are not rounded."""
        self.work.out[where] = new
        if MASTER_WEIGHTS.name in row.fields:
            self.work.state[MASTER_WEIGHTS.name][where] = new
