"""One step that reads and writes only what has a gradient: whole parameters, and some rows of others.

Its time depends on the number of elements that have a gradient and on the number of parameters, not on the size of the
segment. For this, `out` already holds the current weights wherever they stay as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optd_server.optim import runs
from optd_server.optim.algorithm import SLOW_WEIGHTS, Array, Elementwise, StateField, Vector
from optd_server.optim.assignment import Indices, Mask
from optd_server.optim.backends.base import Backend, Work
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState
from optd_server.optim.shared_coefficients import SharedCoefficients
from optd_server.optim.step import ASSIGNMENTS, Assignments, begin, check

GATHERED = 1 << 20
"""How many elements of rows are gathered at a time, so that the memory they take beside the segment is bounded."""


class RowGradient(NamedTuple):
    """The gradient of some rows of one parameter of a segment; all other rows have none."""

    parameter: int
    ids: npt.NDArray[np.int64]
    """Which rows: ascending, each once."""
    values: Array
    """Row by row, shape (rows, elements of each), of the segment's dtype."""


def apply_touched(
    algorithm: Elementwise,
    options: Sequence[Options],
    segment: SegmentState,
    *,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: Mask,
    rows: Sequence[RowGradient] = (),
    counts: Sequence[int] | None = None,
    threads: int = 1,
    backend: Backend = BLOCKED,
    assignments: Assignments = ASSIGNMENTS,
) -> None:
    """Apply one step as `step.apply` does, to parameters in `present` and to `rows` of others.

    A parameter of `rows` counts a step, even without any row. Elements without a gradient are neither read nor written,
    unless slow weights of their parameter catch up: `out` must equal `weights` there. Raises as `step.apply`.
    """
    check(
        segment, options, weights=weights, gradient=gradient, out=out, present=present, counts=counts, threads=threads
    )
    touched = present.copy()
    touched[[each.parameter for each in rows]] = True
    shared = begin(algorithm, options, segment, weights, touched, counts, assignments)
    assert isinstance(shared, SharedCoefficients)
    kinds = _kinds(shared.sort(segment, touched), segment)
    step = _TouchedStep(algorithm, shared, segment, weights, out, backend, threads)
    dense = runs.merge(segment.sizes, segment.offsets, np.where(present, kinds, 0))
    starts, lengths = dense.starts[:-1], np.diff(dense.starts)
    short = (dense.kinds != 0) & (lengths < runs.SHORT)
    for number in np.flatnonzero((dense.kinds != 0) & ~short).tolist():
        here = slice(int(starts[number]), int(dense.starts[number + 1]))
        step.in_place(here, gradient[here], int(dense.kinds[number]))
    if short.any():
        step.short(runs.Patchwork(starts[short], lengths[short], dense.kinds[short]), gradient)
    for each in rows:
        if each.values.size:
            step.rows(each, int(kinds[each.parameter]))
    shared.finish(segment, out, touched, threads)


def _kinds(found: runs.Runs, segment: SegmentState) -> Indices:
    """Return the kind of each parameter, shape (P,); that of an empty parameter means nothing."""
    if len(found.kinds) == 0:
        return np.zeros(len(segment.sizes), np.int64)
    places = np.searchsorted(found.starts, segment.offsets, side="right") - 1
    return found.kinds[np.minimum(places, len(found.kinds) - 1)]


class _TouchedStep(NamedTuple):
    """What all pieces of one step share. Each piece becomes a small segment of its own for the backend."""

    algorithm: Elementwise
    shared: SharedCoefficients
    segment: SegmentState
    weights: Vector
    out: Vector
    backend: Backend
    threads: int

    def _work(self, found: runs.Runs, take: Callable[[Vector], Vector], gradient: Vector, out: Vector) -> Work:
        """Take the step of a piece; `take` cuts it from a segment's array. Returns what the backend worked on."""
        work = Work(
            algorithm=self.algorithm,
            runs=found,
            table=self.shared.table,
            weights=_read_only(take(self.weights)),
            gradient=_read_only(gradient),
            out=out,
            state={f.name: take(self.segment.state[f.name]) for f in self.shared.needs if self._is_stepped(f)},
        )
        self.backend.step(work, self.threads)
        return work

    @staticmethod
    def _is_stepped(field: StateField) -> bool:
        return field.elementwise and field is not SLOW_WEIGHTS

    def in_place(self, here: slice, gradient: Vector, kind: int) -> None:
        """Update a range of elements of one kind in place."""
        self._work(_run(here.stop - here.start, kind), lambda array: array[here], gradient, self.out[here])

    def short(self, piece: runs.Patchwork, gradient: Vector) -> None:
        """Update short ranges, gathered."""
        index = piece.elements()
        found = runs.Runs(np.append(0, np.cumsum(piece.lengths)), piece.kinds)
        part = np.empty(piece.count, self.out.dtype)
        work = self._work(found, lambda array: array[index], gradient[index], part)
        self.out[index] = work.out
        for name, array in work.state.items():
            self.segment.state[name][index] = array

    def rows(self, given: RowGradient, kind: int) -> None:
        """Update some rows of a parameter, gathered."""
        columns = given.values.shape[1]
        first = int(self.segment.offsets[given.parameter])
        here = slice(first, first + int(self.segment.sizes[given.parameter]))
        most = max(1, GATHERED // columns)

        def table(array: Vector) -> Array:
            return array[here].reshape(-1, columns)

        def gathered(ids: Indices, array: Vector) -> Vector:
            return table(array)[ids].reshape(-1)

        for start in range(0, len(given.ids), most):
            ids, values = given.ids[start : start + most], given.values[start : start + most]
            part = np.empty(values.size, self.out.dtype)
            work = self._work(_run(values.size, kind), partial(gathered, ids), values.reshape(-1), part)
            table(self.out)[ids] = work.out.reshape(-1, columns)
            for name, array in work.state.items():
                table(self.segment.state[name])[ids] = array.reshape(-1, columns)


def _run(count: int, kind: int) -> runs.Runs:
    return runs.Runs(np.array([0, count]), np.array([kind]))


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view
