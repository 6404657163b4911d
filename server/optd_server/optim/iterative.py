"""The steps of an algorithm that asks about several weights: each evaluation that comes moves one on.

A step lives here between two evaluations. What the algorithm remembers beyond it is put into the segment at its end, as
the state of any other algorithm.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Evaluation, Iterative, Memory, Search, StateField, Vector, scalar
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState


class Searches:
    """The steps of one segment, one after the other. One call at a time."""

    def __init__(self) -> None:
        self._search: Search | None = None
        self._memory: Memory = {}
        self._has_ended = False
        """Whether the step that the next evaluation belongs to has been ended before it came."""
        self._are_written = False
        """Whether the weights are others than the step has asked about."""

    @property
    def is_under_way(self) -> bool:
        """Whether a step has asked for an evaluation."""
        return self._search is not None

    def abandon(self) -> None:
        """Forget a step that is under way, or has been ended. The next evaluation begins one."""
        self._search, self._has_ended, self._are_written = None, False, False

    def end(self) -> None:
        """End a step that is under way where it is: its state is another one now.

        The next evaluation is still one of that step. It must not begin another one: whoever writes state whenever an
        evaluation is asked for would be asked for ever.
        """
        self._has_ended = self._has_ended or self.is_under_way
        self._search = None

    def note_written_weights(self) -> None:
        """Take note that the weights are others than were asked about: a step that is under way goes on from them."""
        self._are_written = self.is_under_way

    def release(self) -> None:
        """Let go of all vectors: nothing follows."""
        self._search, self._memory = None, {}

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
        if self._has_ended:
            np.copyto(out, weights)
            self.abandon()
            return True
        own = gradient.copy()
        if not present.all():
            own[np.repeat(~present, segment.sizes)] = 0
        found_at = weights.astype(segment.dtype) if self._are_written else None
        evaluation = Evaluation(loss if is_finite else math.inf, own, is_finite, found_at)
        self._are_written, is_done = False, False
        # What overflows here overflows in torch, too, and silently. The setting does not survive in a generator.
        with np.errstate(all="ignore"):
            try:
                if self._search is None:
                    self._memory = recall(algorithm, options, segment)
                    self._search = algorithm.search(options, self._memory, weights.astype(segment.dtype), evaluation)
                    point = next(self._search)
                else:
                    point = self._search.send(evaluation)
            except StopIteration as end:
                point, is_done = end.value, True
            np.copyto(out, point, casting="same_kind")
        if is_done:
            self._search = None
            keep(self._memory, algorithm, options, segment)
            segment.steps += 1
        return is_done


def recall(algorithm: Iterative, options: Options, segment: SegmentState) -> Memory:
    """Return what a segment remembers, for a new step: its own vectors, to be replaced by others and not changed."""
    memory: Memory = {}
    for field in algorithm.state:
        members = list(_known(field, options, segment))
        if field.series is not None:
            memory[field.name] = [segment.state[member.name] for member in members]
        elif members:
            array = segment.state[field.name]
            memory[field.name] = float(array[0]) if field.shape is scalar else array
    return memory


def _known(field: StateField, options: Options, segment: SegmentState) -> Iterator[StateField]:
    """The fields that a segment has of one; of a series those up to the first that it does not have."""
    for member in field.members(options):
        if member.name not in segment.state or not segment.started[member.name][0]:
            return
        yield member


def keep(memory: Memory, algorithm: Iterative, options: Options, segment: SegmentState) -> None:
    """Put into a segment what is to be remembered."""
    for field in algorithm.state:
        if field.name not in memory:
            continue
        value = memory[field.name]
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
