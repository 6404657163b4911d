"""The numbers of one job: weights, options, state, last gradient. Changed only by actions of the job's writer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

from optd_server.engine import plan
from optd_server.engine.averages import Averages, averages_of
from optd_server.engine.fields import planned_state_bytes, state_bytes, working_bytes
from optd_server.engine.gradients import Conditioning
from optd_server.engine.groups import Groups
from optd_server.engine.job_options import gradients_kept, initial, plan_update
from optd_server.engine.looks import Looks
from optd_server.engine.option_changes import OptionChanges, Origin, origins
from optd_server.engine.options import find_algorithm
from optd_server.engine.policies.registry import policy_of, rule_of
from optd_server.optim.iterative import Searches
from optd_server.store.flat import Array, FlatBuffers, computed_bytes_of
from optd_server.store.gradients import Gradient, Slots
from optd_server.store.journal import Changes
from optd_server.store.snapshots import Snapshot, Snapshots, WeightSet
from optd_wire.layout import lay_out
from optd_wire.values import (
    EffectiveOptions,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobOptions,
    JobSpec,
    JobUpdate,
    JobVersion,
)

# A parameter's share of the bookkeeping takes about as long as arithmetic on so many elements.
PARAMETER_COST = 64
# Rows, those of one number side by side, and their sums.
ROW_COPIES = 3


class Model:
    """What a job's steps read and write."""

    _serials = count(1)

    def __init__(self, spec: JobSpec, weights: WeightSet, memory: plan.Memory, planned: plan.Plan) -> None:
        self.name = spec.name
        self.serial = next(self._serials)
        """Tells jobs apart that have had one name, one after the other."""
        self.policy = policy_of(spec)
        self.ephemeral = spec.ephemeral
        self.rule = rule_of(self.policy)
        self.groups = Groups.of(find_algorithm(spec.algorithm), spec)
        self.conditioning = Conditioning(self.groups, initial(spec.options))
        self.averages = Averages(self.conditioning.options.options)
        self.changes = OptionChanges()
        self.searches = Searches()
        self.slots = Slots(most=self.rule.slots)
        self.looks = Looks()
        self.snapshots = Snapshots(
            Snapshot(
                JobVersion(),
                tuple(self.groups.layouts),
                tuple(self.groups.options),
                weights,
                self.groups.step_ranges(),
                tuple(self.groups.effective(0)),
            ),
            most=plan.SNAPSHOTS,
        )
        self.plan = planned
        self.stepped_wall = 0.0
        """When the last step was made, in seconds of the epoch; 0 before the first one."""
        self.written_revision = 0
        """The revision at which weights were written last by others than steps."""
        self._memory = memory
        self._watchers: set[Callable[[], None]] = set()

    @property
    def version(self) -> JobVersion:
        """Where the job stands."""
        return self.snapshots.current.version

    def cost(self, elements: int) -> int:
        """What work on `elements` elements takes, in elements: each parameter costs something by itself."""
        return elements + PARAMETER_COST * self.groups.parameters

    @property
    def elements(self) -> int:
        """How many elements its weights have."""
        return self.groups.elements

    def gradient(self, group: int, segment: int) -> Array | None:
        """The gradient of the last step for a segment of a group, where it is still there."""
        extent, place = self.groups.place(group, segment)
        last = self._last_gradient
        if last is None or extent >= len(last.slabs):
            return None
        return last.slabs[extent][place.slab][
            place.start : place.start + self.groups.layouts[group].segments[segment].count
        ]

    @property
    def _last_gradient(self) -> Gradient | None:
        return self.slots.last if self.looks.gradient is None else self.looks.gradient

    def has_gradient(self, group: int, segment: int, parameter: int) -> bool:
        """Whether a parameter of a segment had a gradient in the last step, where it is still there."""
        extent, place = self.groups.place(group, segment)
        last = self._last_gradient
        return last is not None and last.has(extent, place.slab, place.first + parameter)

    def effective(self) -> tuple[EffectiveOptions, ...]:
        """What schedules make of options in the step that comes next, of the groups in which that is something else."""
        if not self.groups.is_scheduled:
            return ()
        summaries = self.snapshots.current.summaries()
        return tuple(EffectiveOptions(each.options.group, each.effective) for each in summaries if each.effective)

    def watch(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Calls `notify` after each change, until the function that is returned is called."""
        self._watchers.add(notify)
        return lambda: self._watchers.discard(notify)

    def notify(self) -> None:
        """Tells the watchers that something has changed."""
        for watcher in tuple(self._watchers):
            watcher()

    def publish_step(self, weights: WeightSet, changes: Changes, wall: float) -> None:
        """Publishes the weights after a step as the next version; `changes` is what the step has changed.

        `wall` is the time of the step's last push, in seconds of the epoch.
        """
        self.stepped_wall = wall
        now = self.snapshots.current
        version = replace(now.version, version=now.version.version + 1)
        steps, options = self.groups.step_ranges(), tuple(self.groups.effective(version.version))
        stepped = replace(now, version=version, weights=weights, steps=steps, effective=options)
        self.snapshots.publish(stepped, changes)
        self.notify()

    def publish_revision(self, weights: WeightSet | None = None) -> None:
        """Publishes a change that is no step: options, groups, or weights that were written."""
        now = self.snapshots.current
        self.snapshots.publish(
            Snapshot(
                version=replace(now.version, revision=now.version.revision + 1),
                layouts=tuple(self.groups.layouts),
                options=tuple(self.groups.options),
                weights=weights or now.weights,
                steps=self.groups.step_ranges(),
                effective=tuple(self.groups.effective(now.version.version)),
            )
        )
        self.notify()

    def change_options(
        self,
        changes: Sequence[tuple[int, GroupOptions]],
        updates: Sequence[tuple[GroupUpdate, Origin]],
        weights: WeightSet | None = None,
    ) -> None:
        """Puts options in force that were planned for these updates, and with them `weights`, where there are any.

        Raises `MemoryExceeded` where options need state that does not fit, unless that was reserved before.
        """
        if not changes and weights is None:
            return
        options = list(self.groups.options)
        more_state = False
        for index, changed in changes:
            more_state |= self._fields(index, changed) != self._fields(index, options[index])
            more_state |= self._working(index, changed) != self._working(index, options[index])
            options[index] = changed
        if more_state:
            self._memory.reserve(self.plan, self._bytes(options))
        for index, changed in changes:
            self.changes.note_group(self.groups.options[index], changed, origins(updates, changed.group))
        self.groups.change_options(changes)
        self.publish_revision(weights)

    def update(self, update: JobUpdate, origin: Origin) -> None:
        """Changes options of the job as a whole, from the next step on.

        Raises what `plan_update` raises, or `MemoryExceeded`.
        """
        options = self.planned_options(update)
        if options is not self.conditioning.options:
            if self._kept_beside(options) != self._kept_beside(self.conditioning.options):
                self._memory.reserve(self.plan, self._bytes(self.groups.options, job_options=options))
            self.changes.note_job(self.conditioning.options, options, origin)
            self.conditioning.options = options
            self.averages.configure(options.options)
            self.release_accumulation()
            self.publish_revision()

    def planned_options(self, update: JobUpdate) -> JobOptions:
        """What the options of the job as a whole become with an update; raises what `plan_update` raises."""
        return plan_update(self.groups.distinct_algorithms, self.conditioning.options, update, self.version.version)

    def release_accumulation(self) -> None:
        """Gives back the memory of gradients that are added up no more."""
        if not self.conditioning.accumulates and self.conditioning.accumulation.release():
            self._memory.reserve(self.plan, self._bytes(self.groups.options))

    def release_all(self) -> None:
        """Lets go of all memory of a job that is closed, but for what is being read or received: that goes later.

        Calls that still run, and what waits for the collector of garbage, may refer to the job for long.
        """
        self.slots.release_all()
        self.looks.release()
        self.snapshots.release_all()
        self.groups.release_all()
        self.averages.release_all()
        self.conditioning.accumulation.release_all()
        self.searches.release()

    def add_group(self, spec: GroupSpec, weights: FlatBuffers) -> GroupInfo:
        """Appends a checked group with its weights; raises `MemoryExceeded`."""
        before = self.plan.bytes
        self._memory.reserve(self.plan, self.bytes_with(spec))
        try:
            copies = self.averages.copies(weights)
            self.snapshots.add(weights)
        except OSError:
            self._memory.reserve(self.plan, before)
            raise
        self.averages.adopt(copies)
        self.groups.add([spec], self.version.version)
        self.publish_revision()
        return self.groups.info(len(self.groups) - 1)

    def bytes_with(self, spec: GroupSpec) -> int:
        """The bytes that the job would be planned with if it had this group too."""
        state = planned_state_bytes(spec, self.groups.algorithm, self.groups.defaults)
        return plan.job_bytes(
            self.rule,
            [*self.groups.layouts, lay_out(spec.parameters)],
            [*self._states(self.groups.options), state],
            self._memory.message_bytes,
            **self._kept_beside(self.conditioning.options),
        )

    def check_rows(self, size: int) -> None:
        """Raises `MemoryExceeded` where there is no room for rows of a gradient, of so many bytes, and adding them up.

        As much as a whole gradient is planned for: where there are rows, their parameters take nothing of that.
        """
        more = ROW_COPIES * size - computed_bytes_of(self.groups.layouts)
        if more > 0:
            self._memory.check(self.plan, self.plan.bytes + more)

    def reserve_states(self, fields: Collection[str], changes: Sequence[tuple[int, GroupOptions]]) -> None:
        """Plans memory for states that are written, whether the options need them or not, and for changed options.

        Raises `MemoryExceeded`.
        """
        options = list(self.groups.options)
        for index, changed in changes:
            options[index] = changed
        self._memory.reserve(self.plan, self._bytes(options, fields))

    def _bytes(
        self,
        options: Sequence[GroupOptions],
        fields: Collection[str] = (),
        job_options: JobOptions | None = None,
    ) -> int:
        states = self._states(options, fields)
        kept = self._kept_beside(job_options or self.conditioning.options)
        return plan.job_bytes(self.rule, self.groups.layouts, states, self._memory.message_bytes, **kept)

    def _kept_beside(self, options: JobOptions) -> dict[str, int]:
        """How many gradients and averages options need; gradients that are there still count, too."""
        gradients = max(gradients_kept(options.options), int(self.conditioning.accumulation.count > 0))
        return {"gradients": gradients, "averages": len(averages_of(options.options))}

    def _states(self, options: Sequence[GroupOptions], fields: Collection[str] = ()) -> list[int]:
        """By group, the bytes of the states that it has, that `options` need, and that are in `fields`.

        What options need no more is kept.
        """
        states = []
        for index, (group, layout) in enumerate(zip(options, self.groups.layouts, strict=False)):
            names = self._fields(index, group).union(
                fields, *map(partial(self._kept, index), range(len(layout.segments)))
            )
            known = (field for name, field in self.groups.state_fields[index].items() if name in names)
            states.append(state_bytes(known, layout) + self._working(index, group))
        return states

    def _fields(self, index: int, group: GroupOptions) -> set[str]:
        return {field.name for field in self.groups.fields(index, group.options)}

    def _working(self, index: int, group: GroupOptions) -> int:
        return working_bytes(self.groups.algorithms[index], group.options, self.groups.layouts[index])

    def _kept(self, group: int, segment: int) -> set[str]:
        started = self.groups.state(group, segment).started
        return {name for name, flags in started.items() if flags.any()}
