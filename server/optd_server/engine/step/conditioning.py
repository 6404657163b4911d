"""What becomes of the gradient of a step before the algorithm gets it, and the account of that.

With the defaults nothing is done to a gradient, and it is not looked at. Else it lies in a slot of the job's: what a
worker shares is never written to.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from optd_server.engine.offload import Offload
from optd_server.engine.options.groups import Groups
from optd_server.engine.rounds.intake import weight_of
from optd_server.engine.step.accumulation import Accumulation
from optd_server.engine.step.reduced import Reduced
from optd_server.engine.step.reduction import present_ranges
from optd_server.optim import group_options, job_options, option
from optd_server.optim.clipping import Bounds, Clipped, Piece, clip, group_norms
from optd_server.store.gradients import Gradient
from optd_wire.errors import NonfiniteGradient
from optd_wire.values import GradientSummary, GroupOptions, JobOptions, Options, PushHeader

_CLIPPING = (group_options.CLIP_NORM, group_options.CLIP_VALUE)
UNCLIPPED = Clipped(0.0, changed=False)
"""What becomes of a gradient without bounds."""


class Conditioning:
    """How gradients of a job are made fit for a step. Its numbers are changed by the job's writer alone."""

    def __init__(self, groups: Groups, options: JobOptions) -> None:
        self.options = options
        self._groups = groups
        self.accumulation = Accumulation()
        self._summary = GradientSummary()
        self._bounds: tuple[Sequence[GroupOptions], int, JobOptions, Bounds | None] | None = None

    def summary(self) -> GradientSummary:
        """What has become of the gradients so far."""
        return replace(self._summary, accumulated=self.pending)

    @property
    def pending(self) -> int:
        """How many rounds are added up for a step that is still to come."""
        return self.accumulation.count

    @property
    def nonfinite(self) -> str:
        """What is to become of pushes that have a NaN or an infinity: the option of that name."""
        return str(option.text(self.options.options, job_options.NONFINITE))

    @property
    def accumulates(self) -> bool:
        """Whether the gradient of the next step is, or may be, of more than one round."""
        return self.rounds > 1 or self.pending > 0

    @property
    def waits_for_more(self) -> bool:
        """Whether no step follows the next round yet."""
        return self.pending + 1 < self.rounds

    @property
    def rounds(self) -> int:
        """How many rounds make a step."""
        return option.integer(self.options.options, job_options.ACCUMULATE)

    @property
    def reduction(self) -> str:
        """How gradients become one: the option of that name."""
        return str(option.text(self.options.options, job_options.REDUCTION))

    @property
    def norm_type(self) -> float:
        """The p of the p-norms."""
        return option.number(self.options.options, job_options.CLIP_NORM_TYPE)

    @property
    def clips(self) -> bool:
        """Whether gradients have bounds."""
        return self._current_bounds() is not None

    @property
    def writes(self) -> bool:
        """Whether it writes to gradients."""
        return self.accumulates or self.clips

    def may_write(self, header: PushHeader) -> bool:
        """Whether the gradient of a push of its own may have to be written to."""
        rides = any(name in _CLIPPING for update in header.updates for name in update.options)
        scaled = self.reduction == job_options.SUM and weight_of(header) != 1
        return scaled or rides or self.writes or header.loss_scale is not None or self.nonfinite != job_options.REJECT

    def apply(self, gradient: Gradient, effective: Sequence[Options], offload: Offload) -> Clipped:
        """Finds the norms of a gradient by group, and clips it in place where there are bounds; off the event loop.

        `effective` are the options of the groups in this step.
        """
        pieces, bounds = list(self._pieces(gradient)), self._current_bounds()
        if bounds is not None and self._groups.is_scheduled:
            bounds = self._new_bounds(effective)
        if bounds is not None and bounds.only_norms:
            return clip(pieces, bounds, offload.threads)
        norms = group_norms(pieces, len(self._groups), self.norm_type, offload.threads)
        return replace(UNCLIPPED if bounds is None else clip(pieces, bounds, offload.threads), norms=norms)

    def note(self, clipped: Clipped) -> None:
        """Counts a step."""
        if clipped.changed or clipped.norm != self._summary.norm:
            count = self._summary.clipped_steps + clipped.changed
            self._summary = replace(self._summary, clipped_steps=count, norm=clipped.norm)

    def note_skip(self) -> None:
        """Counts a step that was not made."""
        self._summary = replace(self._summary, skipped_steps=self._summary.skipped_steps + 1)

    def note_nonfinite(self, reduced: Reduced, version: int) -> None:
        """Counts entries of a round that were not finite."""
        for each in reduced.nonfinite:
            assert each.nonfinite is not None
            found = each.nonfinite
            self._count_nonfinite(found.count, each.worker, found.parameter, version, each.wall)

    def note_refusal(self, error: NonfiniteGradient, worker: str, version: int, wall: float) -> None:
        """Counts the entry that a push was refused for."""
        self._count_nonfinite(1, worker, str(error.values["parameter"]), version, wall)

    def _count_nonfinite(self, count: int, worker: str, parameter: str, version: int, wall: float) -> None:
        self._summary = replace(
            self._summary,
            nonfinite=self._summary.nonfinite + count,
            nonfinite_unix_ms=int(wall * 1000),
            nonfinite_version=version,
            nonfinite_worker=worker,
            nonfinite_parameter=parameter,
        )

    def _current_bounds(self) -> Bounds | None:
        """The bounds in force; worked out anew when options have changed or groups were added."""
        known, groups = self._bounds, self._groups
        if known is None or known[0] is not groups.options or known[1] != len(groups) or known[2] is not self.options:
            bounds = self._new_bounds([group.options for group in groups.options])
            self._bounds = known = (groups.options, len(groups), self.options, bounds)
        return known[3]

    def _new_bounds(self, groups: Sequence[Options]) -> Bounds | None:
        values = np.array([_bound(options.get(group_options.CLIP_VALUE)) for options in groups])
        norms = np.array([_bound(options.get(group_options.CLIP_NORM)) for options in groups])
        norm = _bound(self.options.options[job_options.CLIP_NORM])
        if math.isinf(norm) and np.isinf(values).all() and np.isinf(norms).all():
            return None
        return Bounds(values, norms, norm, self.norm_type)

    def _pieces(self, gradient: Gradient) -> Iterator[Piece]:
        """The elements that a gradient has, by group."""
        for extent, flags, slabs in zip(self._groups.extents, gradient.presence, gradient.slabs, strict=False):
            for slab, present, elements in zip(extent.slabs, flags, slabs, strict=True):
                last = np.cumsum(slab.parts)
                for group, start, stop in zip(slab.groups, last - slab.parts, last, strict=True):
                    here = slice(start, stop)
                    for low, high in present_ranges(present[here], slab.starts[here], slab.sizes[here]):
                        yield Piece(group, elements[low:high])
        for rows in gradient.rows:
            yield Piece(rows.place.group, rows.values.reshape(-1))


def _bound(value: object) -> float:
    return value if isinstance(value, float) else math.inf
