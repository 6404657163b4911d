"""What the options that are in force say about gradients, worked out once and kept until options change."""

from collections.abc import Sequence

from optd_server.engine.events import OptionEdits
from optd_server.engine.state import JobState
from optd_server.engine.step.conditioning import CLIPPING, GradientSettings, bounds_of, settings_of
from optd_server.engine.step.intake import weight_of
from optd_server.optim.clipping import Bounds
from optd_server.optim.job_options import REJECT, SUM
from optd_wire.values import GroupOptions, JobOptions, PushHeader


class Settings:
    """A cache beside the state of one job."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        self._of: tuple[JobOptions, GradientSettings] = (state.options, settings_of(state.options))
        self._bounds: tuple[Sequence[GroupOptions], int, JobOptions, Bounds | None] | None = None

    @property
    def now(self) -> GradientSettings:
        """Those of the job's options."""
        return self.of(self._state.options)

    def of(self, options: JobOptions) -> GradientSettings:
        """Those of some options."""
        if self._of[0] is not options:
            self._of = (options, settings_of(options))
        return self._of[1]

    @property
    def accumulates(self) -> bool:
        """Whether the gradient of the next step is, or may be, of more than one round."""
        return self.now.rounds > 1 or self._state.accumulation.count > 0

    @property
    def writes(self) -> bool:
        """Whether something is written to gradients."""
        return self.accumulates or self._unscheduled() is not None

    def may_write(self, header: PushHeader) -> bool:
        """Whether the gradient of a push of its own may have to be written to."""
        now = self.now
        rides = any(name in CLIPPING for update in header.updates for name in update.options)
        scaled = now.reduction == SUM and weight_of(header) != 1
        return scaled or rides or self.writes or header.loss_scale is not None or now.nonfinite != REJECT

    def bounds(self, edits: OptionEdits) -> Bounds | None:
        """The bounds of the next step's gradient, with options that take effect with it; None if there are none."""
        groups, version = self._state.groups, self._state.version
        if edits:
            settings = self.of(edits.job or self._state.options)
            return bounds_of(settings, groups.in_force.effective_with(edits.groups, version))
        found = self._unscheduled()
        if found is None:
            return None
        effective = groups.in_force.effective(version)
        return bounds_of(self.now, effective) if groups.in_force.is_scheduled else found

    def _unscheduled(self) -> Bounds | None:
        """The bounds that options say, whatever schedules make of them. None: there are none at all."""
        known, groups, options = self._bounds, self._state.groups, self._state.options
        if known is None or known[0] is not groups.options or known[1] != len(groups) or known[2] is not options:
            bounds = bounds_of(self.now, [group.options for group in groups.options])
            self._bounds = known = (groups.options, len(groups), options, bounds)
        return known[3]
