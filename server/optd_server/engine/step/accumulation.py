"""Gradients of several rounds, added up for one step: the option `accumulate` of a job.

The gradient of the step is the mean over all pushes, each with its weight; a parameter that some of them lack is
averaged over those that have it. Or it is their sum, each times its weight: what is kept is the same, so that the
option `reduction` which is in force at the step counts for all of them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from optd_server.engine.offload import Offload
from optd_server.engine.step.reduced import Reduced, Totals
from optd_server.engine.step.reduction import Reduction, present_ranges
from optd_server.optim.job_options import MEAN
from optd_server.store.extents import Extent, Slab, computed
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.gradients import Gradient, Slot
from optd_server.store.rows import RowPlace, Rows, merge


class Accumulation:
    """What is added up for the next step. Changed by the job's writer alone."""

    def __init__(self) -> None:
        self.count = 0
        """How many rounds it is of."""
        self._sums = FlatBuffers(())
        self._totals: Totals = []
        self._rows: dict[RowPlace, tuple[Rows, float]] = {}
        """By the `whole` place of a parameter."""

    def fit(self, slot: Slot | None, extents: Sequence[Extent]) -> None:
        """Makes room, here and in the slot that the mean goes to; raises OSError, and has changed nothing then."""
        if slot is not None:
            slot.fit(extents)
        self._sums.extend(computed(extents))
        self._totals += [[np.zeros(len(slab.sizes)) for slab in each.slabs] for each in extents[len(self._totals) :]]

    def add(self, reduced: Reduced, extents: Sequence[Extent], offload: Offload) -> None:
        """Adds the gradient of a round, which lies in its slot and is of no use afterwards.

        `fit` comes before. Runs off the event loop.
        """
        gradient, weights = reduced.gradient, reduced.weights(extents)
        is_mean = reduced.reduction == MEAN  # a sum has the weights of its pushes in it already
        with np.errstate(all="ignore"):
            for number, extent in enumerate(extents[: len(gradient.slabs)]):
                for index, slab in enumerate(extent.slabs):
                    source, into = gradient.slabs[number][index], self._sums.slabs[number][index]
                    own, totals = weights[number][index], self._totals[number][index]
                    self._add(slab, source, into, own, own if is_mean else np.sign(own), totals, offload)
            for rows in gradient.rows:
                weight = reduced.row_weight(rows.place)
                self._add_rows(rows, weight, weight if is_mean else 1.0)
        self.count += 1

    def _add(
        self,
        slab: Slab,
        source: Array,
        into: Array,
        weights: npt.NDArray[np.float64],
        factors: npt.NDArray[np.float64],
        totals: npt.NDArray[np.float64],
        offload: Offload,
    ) -> None:
        first = totals == 0
        for factor in np.unique(factors[factors > 0]).tolist():
            for mask, add in ((first, False), (~first, True)):
                for start, stop in present_ranges((factors == factor) & mask, slab.starts, slab.sizes):
                    if factor != 1:
                        offload.kernels.scale(source[start:stop], factor, offload.threads)
                    offload.kernels.accumulate(into[start:stop], source[start:stop], add=add)
        totals += weights

    def _add_rows(self, rows: Rows, weight: float, factor: float) -> None:
        values = rows.values if factor == 1 else rows.values * rows.values.dtype.type(factor)
        added, whole = Rows(rows.place, rows.ids, values), rows.place.whole
        known = self._rows.get(whole)
        if known is None:
            self._rows[whole] = (added, weight)
            return
        finest = known[0].place.finer(added.place)
        before, added = known[0].at(finest), added.at(finest)
        ids, sums = merge(np.concatenate([before.ids, added.ids]), np.concatenate([before.values, added.values]))
        self._rows[whole] = (Rows(finest, ids, sums), known[1] + weight)

    def finish(self, slot: Slot | None, extents: Sequence[Extent], offload: Offload, how: str) -> Gradient:
        """Writes the mean of all, or the sum, as `how` says, to a slot, and begins anew. Runs off the event loop.

        Without a slot it stays where it has been added up, until the next round is.
        """
        reduction = Reduction(extents, offload.kernels, offload.threads)
        rows = self._spread_rows(extents)
        for number, extent in enumerate(extents):
            for index, slab in enumerate(extent.slabs):
                totals, sums = self._totals[number][index], self._sums.slabs[number][index]
                into = sums if slot is None else slot.buffers.slabs[number][index]
                for start, stop in present_ranges(totals > 0, slab.starts, slab.sizes) if slot is not None else ():
                    offload.kernels.copy(into[start:stop], sums[start:stop], offload.threads)
                if how == MEAN:
                    reduction.scale_inverse(into, slab, totals)
        presence = [[totals > 0 for totals in row] for row in self._totals]
        slabs = self._sums.slabs if slot is None else slot.buffers.slabs
        for each, total in rows if how == MEAN else ():
            reduction.scale_rows(each, total)
        self.clear()
        return Gradient(slabs, presence, tuple(each for each, _ in rows))

    def _spread_rows(self, extents: Sequence[Extent]) -> list[tuple[Rows, float]]:
        """The rows, but for those of parameters that other rounds have whole: they join these."""
        left = []
        for at, (rows, weight) in self._rows.items():
            totals = self._totals[at.extent][at.slab]
            if totals[at.parameter] > 0:
                rows.add_to(self._sums.slabs[at.extent][at.slab])
                totals[at.parameter] += weight
            else:
                left.append((rows, weight))
        return left

    def clear(self) -> None:
        """Drops what is added up; the memory stays."""
        self.count = 0
        self._rows.clear()
        for row in self._totals:
            for totals in row:
                totals[:] = 0

    def release_all(self) -> None:
        """Lets go of the memory of a job that is closed."""
        self._sums.release()
        self._rows.clear()

    def release(self) -> bool:
        """Gives the memory back, where nothing is added up; returns whether there was any."""
        had = bool(self._sums.extents)
        self._sums, self._totals = FlatBuffers(()), []
        return had
