"""Which options each parameter of a segment has, and which state these options need."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim import runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, SLOW_WEIGHTS, Algorithm, StateField, Vector, own
from optd_server.optim.lookahead import catch_up, looks_ahead, period, share_of_way
from optd_server.optim.option import Options, singles
from optd_server.optim.segment import SegmentState

Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int64]


class Assignment:
    """The options of a segment's groups, with equal ones merged, and what follows from them for each parameter."""

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
        """The distinct options."""
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
        """Whether it was made for this algorithm and these very objects, for the same numbers of parameters."""
        return (
            algorithm is self._algorithm
            and (self._counts is None if counts is None else self._counts == tuple(counts))
            and len(options) == len(self._options)
            and all(map(lambda ours, theirs: ours is theirs, self._options, options))
        )

    def waiting(self, field: StateField, segment: SegmentState) -> Mask:
        """Return which parameters need a field but do not have it yet."""
        return self.needs[field] & ~segment.started[field.name]

    def begin(self, segment: SegmentState, weights: Vector, present: Mask | None) -> None:
        """Set state that does not begin with zeros, for the parameters that get it in this step."""
        for field in self.needs:
            if field.initial is None and not field.of_weights:
                continue
            waiting = self.waiting(field, segment)
            if present is not None:
                waiting &= present
            if field.of_weights:
                self._copy_weights(segment, field, weights, waiting)
                continue
            assert field.initial is not None
            for place in np.flatnonzero(waiting).tolist():
                value = field.initial(self.distinct[int(self.which[place])])
                if value != 0:
                    segment.state[field.name][segment.layout(field).elements(place, place + 1)] = value

    def finish(self, segment: SegmentState, out: Vector, present: Mask | None, threads: int = 1) -> None:
        """End a step of the parameters in `present`, or of all, whose new weights are in `out`.

        Counts the step, notes that these parameters have the state that they need, and returns parameters to their slow
        weights if these are due to catch up.
        """
        segment.steps += 1 if present is None else present
        for field, needs in self.needs.items():
            segment.started[field.name] |= needs if present is None else needs & present
        for field in (MASTER_WEIGHTS, SLOW_WEIGHTS):
            if field.name in segment.started:
                # A step that does not need them does not update them: they no longer match the weights.
                moved = np.ones(len(self.which), np.bool_) if present is None else present
                segment.started[field.name] &= ~moved | self.needs.get(field, False)
        if SLOW_WEIGHTS in self.needs:
            self._look_ahead(segment, out, present, threads)

    def _look_ahead(self, segment: SegmentState, out: Vector, present: Mask | None, threads: int) -> None:
        slow = segment.state[SLOW_WEIGHTS.name]
        for which, options in enumerate(self.distinct):
            if not looks_ahead(options):
                continue
            due = (self.which == which) & (segment.steps % period(options) == 0)
            for here, exact in self._exact(segment, due if present is None else due & present, out):
                catch_up(slow[here], exact, share_of_way(options), threads)
                np.copyto(out[here], exact, casting="same_kind")

    def _copy_weights(self, segment: SegmentState, field: StateField, weights: Vector, starting: Mask) -> None:
        for here, exact in self._exact(segment, starting, weights):
            np.copyto(segment.state[field.name][here], exact)

    def _exact(self, segment: SegmentState, chosen: Mask, weights: Vector) -> Iterator[tuple[slice, Vector]]:
        """Yield where elements of chosen parameters lie, and their master weights, or weights for lack of these."""
        kinds = chosen.astype(np.int64)
        if MASTER_WEIGHTS in self.needs:
            kinds[chosen & self.needs[MASTER_WEIGHTS] & segment.started[MASTER_WEIGHTS.name]] = 2
        found = runs.merge(segment.sizes, segment.offsets, kinds)
        for start, stop, kind in zip(found.starts.tolist(), found.starts[1:].tolist(), found.kinds, strict=False):
            if kind:
                here = slice(start, stop)
                yield here, segment.state[MASTER_WEIGHTS.name][here] if kind == 2 else weights[here]


def _distinct(options: Sequence[Options]) -> tuple[list[Options], Indices]:
    """Return the distinct options, and which of them each group has."""
    by_content: dict[Any, int] = {}
    distinct: list[Options] = []
    by_identity: dict[int, int] = {}
    for each in options:
        if id(each) in by_identity:
            continue
        number = by_content.setdefault((*each.items(), singles(each)), len(distinct))
        if number == len(distinct):
            distinct.append(each)
        by_identity[id(each)] = number
    return distinct, np.array([by_identity[id(each)] for each in options], np.int64)
