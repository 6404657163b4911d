"""The arithmetic of one step: new weights beside the current ones, state in place.

Where a gradient has most of a slab's elements every new weight is written. Where it has few, the set that the step
writes to is brought up to date first, by what it lacks of the current weights; then only what changes is written.
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
    """What a step does to one slab."""

    slab: Slab
    algorithm: Algorithm
    options: list[Options]
    counts: list[int] | None
    """Of how many parameters in a row each of the options is; None: of a group's."""
    state: SegmentState
    current: Array
    following: Array
    gradient: Array
    present: Mask
    rows: tuple[Rows, ...]
    change: ChangedElements | None
    """What it changes; None: most."""
    lacks: list[ChangedElements] | None
    """What `following` lacks of the current weights; None: most."""

    @property
    def is_small(self) -> bool:
        """Whether it reads and writes only what changes, and what is lacking."""
        if self.change is not None and not self.present.any():
            return True  # without a gradient nothing of the state may come into being, whatever is lacking
        return bool(self.rows) or (self.change is not None and self.lacks is not None)

    @property
    def elements(self) -> int:
        """How many elements it reads and writes, about."""
        if not self.is_small:
            return self.slab.count
        changed = self.slab.count if self.change is None else self.change.elements
        return changed + (self.slab.count if self.lacks is None else _elements(self.lacks))


class Step:
    """A step of a gradient, from the current weights at `version` into a spare set, which from now on holds nothing.

    `lacks` tells by extent and slab what the spare set lacks of the current weights; see `Compute`.

    Of an iterative algorithm it is one evaluation, with its `loss`, that moves one of `searches` on; None: the gradient
    was not finite.
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
        """Whether the algorithm's step is at its end, once it has been taken."""
        self._groups = groups
        self._searches, self._loss = searches, loss
        self._version = version
        self._lacks = lacks
        # Rows whose step moves the other rows of their parameter, too: theirs is the step of a whole gradient.
        self._whole = [rows for rows in gradient.rows if self._moves_all(rows)]
        self.gradient = self._with_whole(gradient) if self._whole else gradient
        """The gradient as it is taken: some rows may have become whole gradients."""
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
        """How many elements it reads and writes, about."""
        count = 0
        for rows in self._whole:
            count += rows.place.rows * rows.place.columns
        for row in self._parts:
            for part in row:
                count += part.elements
        return count

    @property
    def changes(self) -> ChangedBySlab:
        """What it changes, by extent and slab."""
        return [[part.change for part in row] for row in self._parts]

    def take(self, compute: Compute) -> None:
        """Writes the weights after the step, and updates the state in the groups."""
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
    """What a step changes in a slab; None for most of it, and if a whole step costs no more."""
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
    """In the place of the gradient of groups that were added after it was computed; what is absent is not read."""
    return np.zeros(state.count, state.dtype)
