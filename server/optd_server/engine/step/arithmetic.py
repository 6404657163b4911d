"""The arithmetic of one step: it writes new weights to a spare set, and updates the state in place.

If a gradient covers most elements of a slab, the step writes every new weight. If it covers few, the step first copies
to the spare set the current weights that it lacks, and then writes only the weights that change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optd_server.engine.compute import INLINE_ELEMENTS, Compute
from optd_server.engine.options.groups import Groups
from optd_server.engine.step.reduction import present_ranges
from optd_server.optim.algorithm import Algorithm, Elementwise, Iterative
from optd_server.optim.iterative import Searches
from optd_server.optim.lookahead import returns
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState
from optd_server.optim.step import take_step
from optd_server.optim.touched import RowGradient, apply_touched
from optd_server.store.extents import Slab
from optd_server.store.flat import Array
from optd_server.store.gradients import Gradient
from optd_server.store.ledger import Mask, is_full
from optd_server.store.recent_changes import FRACTION, ChangedBySlab, ChangedElements
from optd_server.store.rows import Rows, densify
from optd_server.store.versions import WeightSet


@dataclass(slots=True)
class _Part:
    """The part of a step that works on one slab."""

    slab: Slab
    algorithm: Algorithm
    options: list[Options]
    counts: list[int] | None
    """How many parameters in a row have each of the options; None: all of a group."""
    state: SegmentState
    current: Array
    following: Array
    gradient: Array
    present: Mask
    rows: tuple[Rows, ...]
    change: ChangedElements | None
    """The elements that it changes; None: most of them."""
    lacks: list[ChangedElements] | None
    """The current weights that `following` lacks; None: most of them."""

    @property
    def is_small(self) -> bool:
        """Whether it reads and writes only the elements that change or that are lacking."""
        if self.change is not None and not self.present.any():
            return True  # without a gradient no state may be allocated, however much is lacking
        return bool(self.rows) or (self.change is not None and self.lacks is not None)

    @property
    def elements(self) -> int:
        """About how many elements it reads and writes."""
        if not self.is_small:
            return self.slab.count
        changed = self.slab.count if self.change is None else self.change.elements
        return changed + (self.slab.count if self.lacks is None else _elements(self.lacks))


class Step:
    """A step with one gradient, from the current weights at `version` into a spare set, whose content becomes invalid.

    `lacks` maps extent and slab to the current weights that the spare set lacks; see `Compute`. For an iterative
    algorithm this is one evaluation with its `loss`, which advances one of `searches`. A `loss` of None means that its
    gradient was not finite.
    """

    def __init__(
        self,
        groups: Groups,
        version: int,
        current: WeightSet,
        gradient: Gradient,
        into: WeightSet,
        lacks: Callable[[int, int], list[ChangedElements] | None] | None,
        searches: Searches,
        loss: float | None,
    ) -> None:
        self.is_done = True
        """After `take`: whether the algorithm has finished its step."""
        self._groups = groups
        self._searches, self._loss = searches, loss
        self._version = version
        self._lacks = lacks
        # A step may also move rows without a gradient. Their parameter then takes the step of a whole gradient.
        self._whole = [rows for rows in gradient.rows if self._moves_all(rows)]
        self.gradient = self._with_whole(gradient) if self._whole else gradient
        """The gradient as the algorithm takes it: some rows may have become whole gradients."""
        self._parts = [
            [self._part(current, into, number, index) for index in range(len(extent.slabs))]
            for number, extent in enumerate(groups.extents)
        ]
        into.publications.clear()

    def _moves_all(self, rows: Rows) -> bool:
        rule = self._groups.algorithms[rows.place.group].rows
        return rule is None or rule.whole(self._groups.in_force.options_of(self._version, rows.place))

    def _with_whole(self, gradient: Gradient) -> Gradient:
        presence = [[flags.copy() for flags in row] for row in gradient.presence]
        for rows in self._whole:
            presence[rows.place.extent][rows.place.slab][rows.place.parameter] = True
        return Gradient(gradient.slabs, presence, tuple(rows for rows in gradient.rows if not self._moves_all(rows)))

    def _part(self, weights: WeightSet, into: WeightSet, number: int, index: int) -> _Part:
        slab = self._groups.extents[number].slabs[index]
        algorithm = self._groups.algorithm_of(slab)
        current = weights.buffers.slabs[number][index]
        state = self._groups.slab_state(number, index)
        gradient = self.gradient
        present = gradient.presence[number][index]
        rows = gradient.rows and tuple(r for r in gradient.rows if (r.place.extent, r.place.slab) == (number, index))
        options, counts = self._groups.in_force.dealt(self._version, slab)
        change = _change(algorithm, slab, present, rows)
        if change is not None:
            touched = present.copy()
            touched[[each.place.parameter for each in rows]] = True
            if (touched & returns(options, slab.parameter_counts if counts is None else counts, state.steps + 1)).any():
                change = None
        lacks = self._lacks(number, index) if self._lacks is not None and (rows or change is not None) else None
        if lacks is not None and _elements(lacks) * FRACTION > slab.count:
            lacks = None
        return _Part(
            slab,
            algorithm,
            options,
            counts,
            state,
            current,
            into.buffers.slabs[number][index],
            gradient.slabs[number][index] if number < len(gradient.slabs) else _nothing(state),
            present,
            rows,
            change,
            lacks,
        )

    @property
    def elements(self) -> int:
        """About how many elements it reads and writes."""
        count = 0
        for rows in self._whole:
            count += rows.place.rows * rows.place.columns
        for row in self._parts:
            for part in row:
                count += part.elements
        return count

    @property
    def changes(self) -> ChangedBySlab:
        """The elements that it changes, by extent and slab."""
        return [[part.change for part in row] for row in self._parts]

    def take(self, compute: Compute) -> None:
        """Writes the weights after the step, and updates the groups' state."""
        if self._whole:
            densify(self._whole, self.gradient.slabs)
        for row in self._parts:
            for part in row:
                if isinstance(part.algorithm, Iterative):
                    self._move(part.algorithm, part)
                elif part.is_small:
                    self._take_small(part, compute)
                else:
                    self._take_whole(part, compute)

    def _move(self, algorithm: Iterative, part: _Part) -> None:
        self.is_done = self._searches.move(
            algorithm,
            part.options[0],
            part.state,
            weights=part.current,
            gradient=part.gradient,
            out=part.following,
            present=part.present,
            loss=math.inf if self._loss is None else self._loss,
            is_finite=self._loss is not None,
        )

    def _take_whole(self, part: _Part, compute: Compute) -> None:
        present = None if is_full(part.present) else part.present
        take_step(
            part.algorithm,
            part.options,
            part.state,
            part.current,
            part.gradient,
            part.following,
            present,
            part.counts,
            compute.threads,
            compute.kernels,
        )

    def _take_small(self, part: _Part, compute: Compute) -> None:
        if part.lacks is None:
            compute.kernels.copy(part.following, part.current, compute.threads)
        for change in part.lacks or ():
            change.copy(part.following, part.current)
        if not part.rows and not part.present.any():
            return
        algorithm = part.algorithm
        assert isinstance(algorithm, Elementwise), "others are refused rows, and take whole steps"
        apply_touched(
            algorithm,
            part.options,
            part.state,
            weights=part.current,
            gradient=part.gradient,
            out=part.following,
            present=part.present,
            rows=[RowGradient(rows.place.parameter, rows.ids, rows.values) for rows in part.rows],
            counts=part.counts,
            threads=compute.threads,
            backend=compute.kernels,
        )


def _change(algorithm: Algorithm, slab: Slab, present: Mask, rows: tuple[Rows, ...]) -> ChangedElements | None:
    """Returns the elements of a slab that a step changes; None for most of them, or if a whole step is as cheap."""
    if isinstance(algorithm, Iterative):
        return None
    whole = slab.count <= INLINE_ELEMENTS or not isinstance(algorithm, Elementwise)
    if not rows and (is_full(present) or (whole and present.any())):
        return None
    elements = int(np.dot(present, slab.sizes)) + sum(each.values.size for each in rows)
    if elements * FRACTION > slab.count:
        return None
    ranges = tuple(present_ranges(present, slab.starts, slab.sizes))
    return ChangedElements(ranges, tuple((each.place, each.ids) for each in rows))


def _elements(changes: list[ChangedElements]) -> int:
    return sum(change.elements for change in changes)


def _nothing(state: SegmentState) -> Array:
    """Returns a gradient for groups that were added after it was computed. It is never read, as nothing is present."""
    return np.zeros(state.count, state.dtype)
