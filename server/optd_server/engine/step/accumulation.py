"""Adds up the gradients of several rounds for one step: the option `accumulate` of a job.

The gradient of the step is the weighted mean over all pushes, or their weighted sum. The mean of a parameter is taken
over the pushes that have it. Sums and weights are stored in the same form for both, so the option `reduction` that is
in force at the step applies to all rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from optd_server.engine.compute import Compute
from optd_server.engine.step.reduced import Reduced
from optd_server.engine.step.reduction import Reduction, present_ranges
from optd_server.engine.step.values import takes_values
from optd_server.optim.job_options import MEAN
from optd_server.store.extents import Extent, in_compute_dtype
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.gradients import Gradient, Slot, Totals
from optd_server.store.rows import RowPlace, Rows, merge


@dataclass(slots=True)
class Accumulation:
    """The rounds that are added up for the next step."""

    count: int = 0
    """The number of rounds."""
    sums: FlatBuffers = field(default_factory=lambda: FlatBuffers(()))
    """The sum of all gradients, each times the weight of its push. A parameter whose total is 0 has no sum yet."""
    totals: Totals = field(default_factory=list)
    """For each parameter, the sum of the weights of the pushes that had it whole."""
    rows: dict[RowPlace, tuple[Rows, float]] = field(default_factory=dict)
    """By the `whole` place of a parameter: the sum of its rows, and the sum of the weights of the pushes with rows."""

    def copy(self) -> "Accumulation":
        """Returns an equal accumulation that shares no memory with this one."""
        totals = [[each.copy() for each in row] for row in self.totals]
        rows = {place: (_copied(each), weight) for place, (each, weight) in self.rows.items()}
        return Accumulation(self.count, self.sums.copy(), totals, rows)

    def fit(self, extents: Sequence[Extent]) -> None:
        """Allocates the sums of all extents; raises OSError, and changes nothing then."""
        self.sums.extend(in_compute_dtype(extents))
        self.totals += [[np.zeros(len(slab.sizes)) for slab in each.slabs] for each in extents[len(self.totals) :]]

    def add(self, gradient: Gradient, weights: Totals, row_weights: Sequence[float], compute: Compute) -> None:
        """Adds a gradient that `weighted` has multiplied by its weights, without changing it. Call `fit` first."""
        with np.errstate(all="ignore"):
            for number, extent in enumerate(self.sums.extents[: len(gradient.slabs)]):
                for index, slab in enumerate(extent.slabs):
                    source, into = gradient.slabs[number][index], self.sums.slabs[number][index]
                    own, totals = weights[number][index], self.totals[number][index]
                    for mask, adds in ((totals == 0, False), (totals != 0, True)):
                        for start, stop in present_ranges((own > 0) & mask, slab.starts, slab.sizes):
                            compute.kernels.accumulate(into[start:stop], source[start:stop], add=adds)
                    totals += own
            for rows, weight in zip(gradient.rows, row_weights, strict=True):
                _add_rows(self.rows, rows, weight)
        self.count += 1

    def clear(self) -> None:
        """Forgets all rounds, and keeps the memory."""
        self.count = 0
        self.rows.clear()
        for row in self.totals:
            for totals in row:
                totals[:] = 0

    def release_all(self) -> None:
        """Releases the memory of a closed job."""
        self.sums.release()
        self.rows.clear()

    def release(self) -> bool:
        """Releases the memory when no round is accumulated; returns whether there was any."""
        had = bool(self.sums.extents)
        self.sums, self.totals = FlatBuffers(()), []
        return had


def weighted(reduced: Reduced, extents: Sequence[Extent], compute: Compute) -> tuple[Totals, tuple[float, ...]]:
    """Multiplies the gradient of a round, in place, by the weights of its pushes; returns the weights.

    A gradient that is a sum already includes the weights; values, which are never summed, do not. The rows of a
    gradient are replaced, not changed in place.
    """
    gradient, weights = reduced.gradient, reduced.weights(extents)
    row_weights = tuple(reduced.row_weight(rows.place) for rows in gradient.rows)
    for number, extent in enumerate(extents[: len(gradient.slabs)]):
        for index, slab in enumerate(extent.slabs):
            if reduced.reduction != MEAN and not takes_values(slab.kind):
                continue
            own = weights[number][index]
            for factor in np.unique(own[(own > 0) & (own != 1)]).tolist():
                for start, stop in present_ranges(own == factor, slab.starts, slab.sizes):
                    compute.kernels.scale(gradient.slabs[number][index][start:stop], factor, compute.threads)
    if reduced.reduction == MEAN:
        gradient.rows = tuple(_times(rows, by) for rows, by in zip(gradient.rows, row_weights, strict=True))
    return weights, row_weights


def finished(
    accumulation: Accumulation,
    last: tuple[Gradient, Totals, tuple[float, ...]] | None,
    into: Slot | None,
    extents: Sequence[Extent],
    how: str,
    compute: Compute,
) -> Gradient:
    """Returns the gradient of the step: the mean of all rounds, or their sum, as `how` says.

    `last` is the last round: its gradient, multiplied by `weighted`, and its weights. That gradient lies in the slot
    `into`, which receives the result, and the accumulated rounds do not change. Without `last`, the result replaces the
    accumulated sums.
    """
    totals = [[each.copy() for each in row] for row in accumulation.totals]
    rows = dict(accumulation.rows)
    sums = accumulation.sums
    target = sums.slabs if into is None else into.buffers.slabs
    reduction = Reduction(extents, compute.kernels, compute.threads)
    with np.errstate(all="ignore"):
        if last is not None:
            _add_sums(accumulation, target, last[1], extents, compute)
            for row, more in zip(totals, last[1], strict=False):
                for own, added in zip(row, more, strict=True):
                    np.add(own, added, out=own)
            for each, weight in zip(last[0].rows, last[2], strict=True):
                _add_rows(rows, each, weight)
        left = []
        for at, (each, weight) in rows.items():
            if totals[at.extent][at.slab][at.parameter] > 0:  # some push has the parameter whole
                each.add_to(target[at.extent][at.slab])
                totals[at.extent][at.slab][at.parameter] += weight
            else:
                left.append((each, weight))
        for number, extent in enumerate(extents):
            for index, slab in enumerate(extent.slabs):
                if how == MEAN or takes_values(slab.kind):
                    reduction.scale_inverse(target[number][index], slab, totals[number][index])
        if how == MEAN:
            left = [(_times(each, 1 / total), total) for each, total in left]
    presence = [[each > 0 for each in row] for row in totals]
    kept = {id(each) for each, _ in accumulation.rows.values()}
    # The step clips its gradient in place, but the accumulated rounds must not change until it has been taken.
    return Gradient(target, presence, tuple(_copied(each) if id(each) in kept else each for each, _ in left))


def _add_sums(
    accumulation: Accumulation,
    target: Sequence[Sequence[Array]],
    last: Totals,
    extents: Sequence[Extent],
    compute: Compute,
) -> None:
    """Adds the accumulated sums to the last round, which lies in `target`."""
    for number, extent in enumerate(extents):
        for index, slab in enumerate(extent.slabs):
            before = accumulation.totals[number][index] > 0
            now = last[number][index] > 0 if number < len(last) else np.zeros(len(before), np.bool_)
            source, into = accumulation.sums.slabs[number][index], target[number][index]
            for mask, adds in ((before & ~now, False), (before & now, True)):
                for start, stop in present_ranges(mask, slab.starts, slab.sizes):
                    compute.kernels.accumulate(into[start:stop], source[start:stop], add=adds)


def _add_rows(into: dict[RowPlace, tuple[Rows, float]], added: Rows, weight: float) -> None:
    whole = added.place.whole
    known = into.get(whole)
    if known is None:
        into[whole] = (added, weight)
        return
    finest = known[0].place.finer(added.place)
    before, added = known[0].at(finest), added.at(finest)
    ids, sums = merge(np.concatenate([before.ids, added.ids]), np.concatenate([before.values, added.values]))
    into[whole] = (Rows(finest, ids, sums), known[1] + weight)


def _times(rows: Rows, factor: float) -> Rows:
    if factor == 1:
        return rows
    with np.errstate(all="ignore"):
        return Rows(rows.place, rows.ids, rows.values * rows.values.dtype.type(factor))


def _copied(rows: Rows) -> Rows:
    return Rows(rows.place, rows.ids, rows.values.copy())
