"""Which options each parameter of a segment has, and which state these need. Kept until the options change."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim import masters
from optd_server.optim.algorithm import MASTER_WEIGHTS, Algorithm, StateField, Vector, own
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState

Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int64]


class Assignment:
    """The options of a segment's groups, equal ones taken together, and what follows from them for its parameters."""

    def __init__(
        self,
        algorithm: Algorithm,
        options: Sequence[Options],
        segment: SegmentState,
        counts: Sequence[int] | None = None,
    ) -> None:
        self._algorithm = algorithm
        self._options = tuple(options)
        self._counts = None if counts is None else tuple(counts)
        self.distinct, of_group = _distinct(options)
        """The options that differ."""
        self.which: Indices = np.repeat(of_group, segment.groups if counts is None else counts)
        """Which of the distinct options each parameter has, shape (P,)."""
        self.needs: dict[StateField, Mask] = {
            field: needs
            for field in algorithm.all_state
            if segment.has(field) and (needs := self._needs(field, segment)).any()
        }
        """Which parameters need a field, shape (P,)."""

    def _needs(self, field: StateField, segment: SegmentState) -> Mask:
        needs: Mask = np.array([field.when(each) for each in self.distinct], np.bool_)[self.which]
        if field.shape is not own and needs.any():
            needs &= np.array([field.shape(shape) is not None for shape in segment.shapes], np.bool_)
        return needs

    def fits(self, algorithm: Algorithm, options: Sequence[Options], counts: Sequence[int] | None = None) -> bool:
        """Whether it was made for this algorithm and these very objects, each of as many parameters."""
        return (
            algorithm is self._algorithm
            and (self._counts is None if counts is None else self._counts == tuple(counts))
            and len(options) == len(self._options)
            and all(map(lambda ours, theirs: ours is theirs, self._options, options))
        )

    def waiting(self, field: StateField, segment: SegmentState) -> Mask:
        """Return which parameters need a field and do not have it yet."""
        return self.needs[field] & ~segment.started[field.name]

    def begin(self, segment: SegmentState, weights: Vector, present: Mask | None) -> None:
        """Give the state of parameters whose first step this is what it begins with, where that is not zero."""
        if MASTER_WEIGHTS in self.needs:
            starting = self.waiting(MASTER_WEIGHTS, segment)
            masters.begin(segment, weights, starting if present is None else starting & present)
        for field in self.needs:
            if field.initial is None:
                continue
            waiting = self.waiting(field, segment)
            if present is not None:
                waiting &= present
            for number in np.flatnonzero(waiting).tolist():
                value = field.initial(self.distinct[int(self.which[number])])
                if value != 0:
                    segment.state[field.name][segment.layout(field).elements(number, number + 1)] = value

    def finish(self, segment: SegmentState, present: Mask | None) -> None:
        """Count a step of the parameters in `present`, or of all, which have the state that they need from now on."""
        segment.steps += 1 if present is None else present
        for field, needs in self.needs.items():
            segment.started[field.name] |= needs if present is None else needs & present
        if MASTER_WEIGHTS.name in segment.started:
            # A step without them leaves them behind the weights.
            moved = np.ones(len(self.which), np.bool_) if present is None else present
            segment.started[MASTER_WEIGHTS.name] &= ~moved | self.needs.get(MASTER_WEIGHTS, False)


def _distinct(options: Sequence[Options]) -> tuple[list[Options], Indices]:
    """Return the options that differ, and which of them each group has."""
    by_content: dict[Any, int] = {}
    distinct: list[Options] = []
    by_identity: dict[int, int] = {}
    for each in options:
        if id(each) in by_identity:
            continue
        number = by_content.setdefault(tuple(each.items()), len(distinct))
        if number == len(distinct):
            distinct.append(each)
        by_identity[id(each)] = number
    return distinct, np.array([by_identity[id(each)] for each in options], np.int64)
