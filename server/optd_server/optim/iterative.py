"""The steps of an algorithm that asks about several weights: each evaluation that comes moves one on.

Between two evaluations a step is plain data, a `SearchState`. What the algorithm remembers beyond the step is put into
the segment at its end, as the state of any other algorithm.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Evaluation, Iterative, Remembered, StateField, Vector, scalar
from optd_server.optim.option import Options
from optd_server.optim.plain import Arrays, Texts, flatten, rebuild
from optd_server.optim.segment import SegmentState

_NAME = "steps"


@dataclass(frozen=True, slots=True, eq=False)
class SearchState:
    """All that is to be known of a segment's steps between two evaluations, beside the segment itself.

    It can be made at any point, in the middle of a step too. A change makes another one: whoever keeps one may go back
    to it. Its vectors are never changed in place.
    """

    search: Any | None = None
    """The step that is under way, of the algorithm's class `search`; None if no step is."""
    has_ended: bool = False
    """Whether the step that the next evaluation belongs to has been ended before that came."""
    are_written: bool = False
    """Whether the weights have been written since the step has asked about them."""


class Searches:
    """The steps of one segment, one after the other. One call at a time."""

    def __init__(self, state: SearchState | None = None) -> None:
        self.state = SearchState() if state is None else state
        """All that it knows."""

    @property
    def is_under_way(self) -> bool:
        """Whether a step has asked for an evaluation."""
        return self.state.search is not None

    def abandon(self) -> None:
        """Forget a step that is under way, or has been ended. The next evaluation begins a step."""
        self.state = SearchState()

    def end(self) -> None:
        """End a step that is under way, at its weights, because somebody has replaced its state.

        The next evaluation still belongs to that step and must not begin another one: whoever writes state whenever an
        evaluation is asked for would be asked forever.
        """
        self.state = replace(self.state, search=None, has_ended=self.state.has_ended or self.is_under_way)

    def note_written_weights(self) -> None:
        """Let a step that is under way go on from other weights than it has asked about."""
        self.state = replace(self.state, are_written=self.is_under_way)

    def release(self) -> None:
        """Let go of all vectors: nothing follows."""
        self.state = replace(self.state, search=None)

    def move(
        self,
        algorithm: Iterative,
        options: Options,
        segment: SegmentState,
        *,
        weights: Vector,
        gradient: Vector,
        out: Vector,
        present: npt.NDArray[np.bool_],
        loss: float,
        is_finite: bool = True,
    ) -> bool:
        """Move a step on by what was found at `weights`, or begin one; returns whether it is at its end.

        Args:
            algorithm: What to do.
            options: Resolved options; a step that is under way goes on with those that it has begun with.
            segment: The state of the P parameters and N elements; updated at the end of a step.
            weights: Shape (N,), of the segment's dtype of weights: where loss and gradient are from. Not modified.
            gradient: Shape (N,), of the segment's dtype. Not modified.
            out: Shape (N,), as `weights`. Gets the weights to ask about next, or those at the step's end.
            present: Which parameters have a gradient, shape (P,); that of others counts as zeros.
            loss: The loss.
            is_finite: Whether the gradient is; see `Evaluation`.
        """
        if segment.count == 0:
            return True
        if self.state.has_ended:
            np.copyto(out, weights)
            self.abandon()
            return True
        own = gradient.copy()
        if not present.all():
            own[np.repeat(~present, segment.sizes)] = 0
        found_at = weights.astype(segment.dtype) if self.state.are_written else None
        evaluation = Evaluation(loss if is_finite else math.inf, own, is_finite, found_at)
        # What overflows here overflows in torch, too, and silently.
        with np.errstate(all="ignore"):
            if self.state.search is None:
                remembered = recall(algorithm, options, segment)
                progress = algorithm.begin(options, remembered, weights.astype(segment.dtype), evaluation)
            else:
                progress = algorithm.advance(self.state.search, evaluation)
            np.copyto(out, progress.weights, casting="same_kind")
        self.state = SearchState(progress.search)
        if progress.search is not None:
            return False
        keep(progress.remembered or {}, algorithm, options, segment)
        segment.steps += 1
        return True


def to_fields(state: SearchState, segment: SegmentState) -> tuple[Arrays, Texts]:
    """Return all of a state as vectors and texts by name, from which `from_fields` makes one with the same bits.

    The vectors are those of the state, not copies. Those that the segment's state has, too, are not among them.
    """
    return flatten(state, _NAME, segment.state)


def from_fields(
    arrays: Mapping[str, Vector], texts: Mapping[str, str], algorithm: Iterative, segment: SegmentState
) -> SearchState:
    """Return the state that `to_fields` was given, beside a segment that has the same state as that one had.

    Takes the vectors over. Raises ValueError if something is missing, or belongs to another algorithm.
    """
    state: SearchState = rebuild(arrays, texts, _NAME, SearchState, algorithm.search, known=segment.state)
    return state


def recall(algorithm: Iterative, options: Options, segment: SegmentState) -> Remembered:
    """Return what a segment remembers, for a new step: its own vectors, which a step replaces and never changes."""
    remembered: dict[str, Any] = {}
    for field in algorithm.state:
        members = list(_known(field, options, segment))
        if field.series is not None:
            remembered[field.name] = [segment.state[member.name] for member in members]
        elif members:
            array = segment.state[field.name]
            remembered[field.name] = float(array[0]) if field.shape is scalar else array
    return remembered


def _known(field: StateField, options: Options, segment: SegmentState) -> Iterator[StateField]:
    """The members of a field that a segment has; for a series, those before the first that it does not have."""
    for member in field.members(options):
        if member.name not in segment.state or not segment.started[member.name][0]:
            return
        yield member


def keep(remembered: Remembered, algorithm: Iterative, options: Options, segment: SegmentState) -> None:
    """Put into a segment what is to be remembered. The segment takes the vectors over."""
    for field in algorithm.state:
        if field.name not in remembered:
            continue
        value = remembered[field.name]
        values = [value] if field.series is None else value
        members = field.members(options)
        for unused in members[len(values) :]:
            if unused.name in segment.started:
                segment.started[unused.name][:] = False
        for member, each in zip(members, values, strict=False):
            segment.allocate(member)
            if field.shape is scalar:
                segment.state[member.name][0] = each
                segment.started[member.name][0] = True
            else:
                segment.state[member.name] = each
                segment.started[member.name][:] = True
