"""The settings of gradients that follow from the options in force, computed once and kept until options change."""

from collections.abc import Sequence

from optd_server.engine.events import OptionEdits
from optd_server.engine.state import JobState
from optd_server.engine.step.conditioning import CLIPPING, GradientSettings, bounds_of, settings_of
from optd_server.engine.step.intake import weight_of
from optd_server.engine.step.staleness import scales
from optd_server.optim.clipping import Bounds
from optd_server.optim.job_options import REJECT, SUM
from optd_wire.values import GroupOptions, JobOptions, PushHeader


class Settings:
    """The gradient settings of one job: a cache beside its state."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        self._of: tuple[JobOptions, GradientSettings] = (state.options, settings_of(state.options))
        self._bounds: tuple[Sequence[GroupOptions], int, JobOptions, Bounds | None] | None = None

    @property
    def now(self) -> GradientSettings:
        """The settings of the job's current options."""
        return self.of(self._state.options)

    def of(self, options: JobOptions) -> GradientSettings:
        """Return the settings that follow from these options."""
        if self._of[0] is not options:
            self._of = (options, settings_of(options))
        return self._of[1]

    @property
    def accumulates(self) -> bool:
        """Whether the next step may combine more than one round."""
        return self.now.rounds > 1 or self._state.accumulation.count > 0

    @property
    def writes(self) -> bool:
        """Whether a step changes gradients in place, as accumulation, clipping and scaling by staleness do."""
        return self.accumulates or scales(self._state.policy) or self._unscheduled() is not None

    def may_write(self, header: PushHeader) -> bool:
        """Whether a step of this push alone may have to change its gradient in place."""
        now = self.now
        rides = any(name in CLIPPING for update in header.updates for name in update.options)
        scaled = now.reduction == SUM and weight_of(header) != 1
        return scaled or rides or self.writes or header.loss_scale is not None or now.nonfinite != REJECT

    def bounds(self, edits: OptionEdits) -> Bounds | None:
        """Return the bounds of the next step's gradient if `edits` take effect with it; None if there are none."""
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
        """Return the bounds in the options before schedules are applied; None if no option sets a bound."""
        known, groups, options = self._bounds, self._state.groups, self._state.options
        if known is None or known[0] is not groups.options or known[1] != len(groups) or known[2] is not options:
            bounds = bounds_of(self.now, [group.options for group in groups.options])
            self._bounds = known = (groups.options, len(groups), options, bounds)
        return known[3]
