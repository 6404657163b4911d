"""The groups of a job: their algorithms, layouts, options and optimizer state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from optd_server.engine.options.by_name import check_matches, check_rules, deal, fields, match
from optd_server.engine.options.resolution import algorithm_of, check_fixed, resolve_group, resolve_options
from optd_server.optim.algorithm import Algorithm, Iterative, StateField
from optd_server.optim.group_options import effective
from optd_server.optim.option import singles
from optd_server.optim.rules import RULES, Matches
from optd_server.optim.segment import SegmentPart, SegmentState
from optd_server.store.extents import Extent, SegmentPlace, Slab, extent_of
from optd_server.store.flat import Array
from optd_server.store.rows import RowPlace
from optd_server.store.snapshots import StepRanges, changed_options
from optd_wire.errors import OptionConflict, UnknownGroup, UnknownParameter
from optd_wire.layout import GroupLayout, lay_out
from optd_wire.values import (
    EffectiveOptions,
    FlatRange,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobSpec,
    Options,
)

PARAMETER_COST = 64
"""The bookkeeping for a parameter takes about as long as arithmetic on so many elements."""
MOST_IN_FORCE = 64
"""How many options are remembered with what schedules make of them, beside four for each parameter."""


class Change(NamedTuple):
    """When an option was changed: the revision of its group that this made, and the job's version."""

    revision: int
    version: int


class Groups:
    """An ordered list of groups that only grows. Changed by the job's writer alone."""

    def __init__(self, algorithm: Algorithm, defaults: Options) -> None:
        self.algorithm = algorithm
        """The job's: that of groups that name none."""
        self.defaults = defaults
        """Resolved options of the job's algorithm."""
        self.algorithms: list[Algorithm] = []
        """By group."""
        self.distinct_algorithms: tuple[Algorithm, ...] = ()
        """Those of the groups, each once."""
        self.iterative: Iterative | None = None
        """The algorithm of the only group, if it is one that must be alone in its job."""
        self.rows_only: list[tuple[int, int, Algorithm]] = []
        """Extent, index and algorithm of the slabs whose algorithm takes no whole gradients."""
        self.layouts: list[GroupLayout] = []
        self.options: list[GroupOptions] = []
        """Another list with each change."""
        self._changed: list[dict[str, Change]] = []
        """By group, when each option that has ever been changed was so last."""
        self.extents: tuple[Extent, ...] = ()
        self.names: tuple[str, ...] = ()
        """The groups' names in order."""
        self.elements = 0
        """How many elements all groups have."""
        self.parameters = 0
        """How many parameters all groups have."""
        self.state_fields: list[Mapping[str, StateField]] = []
        """By group, all states that a parameter may have, by name. The options that this depends on never change."""
        self._fields_of: dict[str, Mapping[str, StateField]] = {}
        """The same by algorithm."""
        self._states: list[list[SegmentState]] = []
        self._extent_of: list[int] = []
        self._index_of: dict[str, int] = {}
        self._now_version = -1
        self._in_force: dict[int, tuple[Options, Options]] = {}
        """What schedules make of options at that version."""
        self._before: dict[int, tuple[Options, Options]] = {}
        """And at the one before it."""
        self._dealt: dict[int, tuple[Slab, list[Options], list[Options]]] = {}
        """By a slab's identity what `dealt` gave of it, without rules, and the list of options that it is from."""
        self._by_name: dict[int, tuple[Options, list[Options]]] = {}
        self._matches: dict[int, Matches] = {}
        """By group, which of the rules that it had last are for which of its parameters."""
        self._lasting: tuple[list[GroupOptions], list[Options]] | None = None
        """The list of options, and what is in force until it changes, where nothing is scheduled."""

    @classmethod
    def of(cls, algorithm: Algorithm, spec: JobSpec) -> "Groups":
        """The groups of a checked spec, at version 0."""
        groups = cls(algorithm, resolve_options(algorithm, spec.defaults))
        groups.add(spec.groups, version=0)
        return groups

    def __len__(self) -> int:
        return len(self.layouts)

    def add(self, specs: Sequence[GroupSpec], version: int) -> None:
        """Appends checked groups, as one extent, whose options take effect at `version`."""
        number, extent = len(self.extents), extent_of_groups(specs, self.algorithm.name, len(self))
        equal: dict[object, Options] = {}
        for spec, layout in zip(specs, extent.layouts, strict=True):
            algorithm = algorithm_of(spec, self.algorithm)
            resolved = _one_of_equal(equal, resolve_group(spec, self.algorithm, self.defaults))
            self._index_of[spec.name] = len(self)
            self.layouts.append(layout)
            self.elements += layout.count
            self.parameters += len(layout.parameters)
            self.options.append(GroupOptions(spec.name, resolved, since_version=version, algorithm=algorithm.name))
            self._changed.append({})
            self._extent_of.append(number)
            self._add_algorithm(algorithm, resolved)
        self.extents = (*self.extents, extent)
        self.names = tuple(self._index_of)
        self._states.append([_empty_state(extent, slab) for slab in extent.slabs])
        for index, slab in enumerate(extent.slabs):
            algorithm = self.algorithm_of(slab)
            if algorithm.rows is not None and algorithm.rows.only:
                self.rows_only.append((number, index, algorithm))

    def _add_algorithm(self, algorithm: Algorithm, options: Options) -> None:
        """Notes the algorithm of the next group, which has these options."""
        self.algorithms.append(algorithm)
        if algorithm.name not in self._fields_of:
            self._fields_of[algorithm.name] = {field.name: field for field in algorithm.state_of(options)}
            self.distinct_algorithms = (*self.distinct_algorithms, algorithm)
        self.state_fields.append(self._fields_of[algorithm.name])
        if isinstance(algorithm, Iterative):
            self.iterative = algorithm

    def algorithm_of(self, slab: Slab) -> Algorithm:
        """The algorithm of a slab's groups, which all have the same."""
        return self.algorithms[slab.groups[0]]

    @property
    def state_names(self) -> list[str]:
        """The names of the states that a parameter of any group may have."""
        return list(dict.fromkeys(name for fields in self._fields_of.values() for name in fields))

    def index(self, name: str, job: str) -> int:
        """The index of a group; raises `UnknownGroup`."""
        if name in self._index_of:
            return self._index_of[name]
        raise UnknownGroup(job=job, group=name[:200], groups=", ".join(self.names))

    def holders(self) -> dict[str, str]:
        """Which group each parameter is in."""
        return {
            parameter.name: options.group
            for layout, options in zip(self.layouts, self.options, strict=True)
            for parameter in layout.parameters
        }

    def plan_updates(self, updates: Sequence[GroupUpdate], job: str, version: int) -> list[tuple[int, GroupOptions]]:
        """What the groups' options become with `updates`: (index, new options), of the ones that change.

        Changes nothing. Raises `UnknownGroup`, `OptionConflict`, or what is wrong with a value.
        """
        planned: dict[int, GroupOptions] = {}
        ruled: set[int] = set()
        equal: dict[object, Options] = {}
        for update in updates:
            index = self.index(update.group, job)
            current = planned.get(index, self.options[index])
            algorithm = self.algorithms[index]
            resolved = resolve_options(algorithm, current.options, update.options)
            if resolved == current.options and singles(resolved) == singles(current.options):
                continue
            check_fixed(algorithm, current.options, resolved)
            if resolved.get(RULES) != current.options.get(RULES):
                ruled.add(index)
            check_rules(algorithm, resolved, self._matching(index, resolved))
            self._check_concurrent(index, update, current, resolved)
            resolved = _one_of_equal(equal, resolved)
            planned[index] = replace(current, options=resolved, revision=current.revision + 1, since_version=version)
        if ruled:
            now = [self._matching(i, planned.get(i, known).options) for i, known in enumerate(self.options)]
            check_matches([now[index] for index in sorted(ruled)], now)
        return list(planned.items())

    def _check_concurrent(self, index: int, update: GroupUpdate, current: GroupOptions, wanted: Options) -> None:
        """Raises `OptionConflict` for an option that has changed since the revision that an update was made on.

        `current` is what updates planned before this one have made of the group.
        """
        expected, committed = update.expected_revision, self.options[index].options
        if expected is None or expected == current.revision:
            return
        for name in {**current.options, **wanted}:
            value, theirs = wanted.get(name), current.options.get(name)
            if value == theirs:
                continue
            since = self._changed[index].get(name, Change(0, 0))
            if theirs != committed.get(name):  # by an update that is planned before this one
                since = Change(current.revision, current.since_version)
            if since.revision > expected or expected > current.revision:
                raise OptionConflict(group=current.group, option=name, ours=value, theirs=theirs, since=since.version)

    def change_options(self, changes: Iterable[tuple[int, GroupOptions]]) -> None:
        """Puts options in force that `plan_updates` gave."""
        options = list(self.options)
        for index, changed in changes:
            before = options[index].options
            for name in {**before, **changed.options}:
                if before.get(name) != changed.options.get(name):
                    self._changed[index][name] = Change(changed.revision, changed.since_version)
            options[index] = changed
        self.options = options

    def matches(self) -> list[Matches | None]:
        """By group, which of its rules are for which of its parameters; None where it has none."""
        return [self._matching(index, group.options) for index, group in enumerate(self.options)]

    def _matching(self, index: int, options: Options) -> Matches | None:
        """As `matches` of one group, under some options. Worked out once: there may be many names."""
        if RULES not in options:
            return None
        known = self._matches.get(index)
        if known is None or known.written != options[RULES]:
            known = match(options, [parameter.name for parameter in self.layouts[index].parameters])
            assert known is not None
            self._matches[index] = known
        return known

    def effective(self, version: int) -> list[Options]:
        """By group, the options that the step from `version` to the next is made with.

        Groups that share options share what follows from them, and where nothing is scheduled it is the options
        themselves: a step sees at a glance what is as it was.
        """
        if self._lasting is not None and self._lasting[0] is self.options and len(self._lasting[1]) == len(self):
            return self._lasting[1]
        found = [self._now(group.options, version) for group in self.options]
        unscheduled = all(group.options is now for group, now in zip(self.options, found, strict=True))
        self._lasting = (self.options, found) if unscheduled else None
        return found

    def effective_with(self, changes: Iterable[tuple[int, GroupOptions]], version: int) -> list[Options]:
        """As `effective`, if these options of groups were in force."""
        found = list(self.effective(version))
        for index, changed in changes:
            found[index] = effective(changed.options, version)
        return found

    def scheduled(self, version: int) -> tuple[EffectiveOptions, ...]:
        """The options that schedules change in the step from `version`, of the groups that have such."""
        found = self.effective(version)
        if not self.is_scheduled:
            return ()
        pairs = zip(self.options, found, strict=True)
        changed = [(group.group, changed_options(group.options, now)) for group, now in pairs]
        return tuple(EffectiveOptions(name, options) for name, options in changed if options)

    def cost(self, elements: int) -> int:
        """The cost of work on so many elements, in elements: each parameter costs something by itself."""
        return elements + PARAMETER_COST * self.parameters

    @property
    def is_scheduled(self) -> bool:
        """Whether schedules made some group's options others, when `effective` was last asked."""
        return self._lasting is None

    def _now(self, options: Options, version: int) -> Options:
        """What schedules make of options at a version; these very ones where there are none."""
        if self._now_version != version:
            self._before, self._in_force, self._now_version = self._in_force, {}, version
        known = self._in_force.get(id(options))
        if known is None:
            found, before = effective(options, version), self._before.get(id(options))
            # A schedule that stands still gives the same object, too.
            same = before is not None and before[0] is options and before[1] == found
            if len(self._in_force) > MOST_IN_FORCE + 4 * self.parameters:
                self._in_force = {}  # of options that have been changed many times, and no step between
            known = self._in_force[id(options)] = before if same and before is not None else (options, found)
        return known[1]

    def dealt(self, version: int, slab: Slab) -> tuple[list[Options], list[int] | None]:
        """The options of a slab's parameters in the step from `version`, and of how many in a row each is.

        None: of as many as the slab's groups have there.
        """
        groups = self.effective(version)
        known = self._dealt.get(id(slab))
        if known is not None and known[0] is slab and known[1] is groups:
            return known[2], None
        if all(self.by_name(group) is None for group in slab.groups):
            self._dealt[id(slab)] = slab, groups, [groups[group] for group in slab.groups]
            return self._dealt[id(slab)][2], None
        options: list[Options] = []
        counts: list[int] = []
        for group, part in zip(slab.groups, slab.parameter_counts.tolist(), strict=True):
            by_name = self.by_name(group)
            if by_name is None:
                options.append(groups[group])
                counts.append(part)
                continue
            segment = next(segment for segment in self.layouts[group].segments if segment.dtype == slab.dtype)
            for member in segment.members:
                now = self._now(by_name[member], version)
                if counts and options[-1] is now:
                    counts[-1] += 1
                else:
                    options.append(now)
                    counts.append(1)
        return options, counts

    def options_of(self, version: int, place: RowPlace) -> Options:
        """The options of one parameter in the step from `version` to the next."""
        by_name = self.by_name(place.group)
        return self.effective(version)[place.group] if by_name is None else self._now(by_name[place.member], version)

    def by_name(self, group: int) -> list[Options] | None:
        """The options of a group's parameters in the order of its list; None where it has no rules for names."""
        options = self.options[group].options
        if RULES not in options:
            return None
        known = self._by_name.get(group)
        if known is None or known[0] is not options:
            matches = self._matching(group, options)
            assert matches is not None
            known = self._by_name[group] = (options, deal(self.algorithms[group], options, matches))
        return known[1]

    def fields(self, group: int, options: Options) -> set[StateField]:
        """The states that a group's parameters need under some options of the group."""
        return fields(self.algorithms[group], options, self._matching(group, options))

    def info(self, index: int) -> GroupInfo:
        """A group with its parameters."""
        return GroupInfo(index, self.options[index], self.layouts[index].parameters)

    def infos(self) -> tuple[GroupInfo, ...]:
        """All groups with their parameters."""
        return tuple(self.info(index) for index in range(len(self)))

    def step_ranges(self) -> StepRanges:
        """By group, the fewest and the most steps that a parameter of it has had."""
        if len(self.extents) == 1 and len(self._states[0]) == 1 and len(self.extents[0].slabs[0].groups) == len(self):
            return self._states[0][0].step_ranges()
        fewest = np.full(len(self), np.iinfo(np.int64).max)
        most = np.zeros(len(self), np.int64)
        for _, _, slab, state in self.slabs():
            members = np.asarray(slab.groups)
            lows, highs = state.step_ranges()
            fewest[members] = np.minimum(fewest[members], lows)
            most[members] = np.maximum(most[members], highs)
        return np.minimum(fewest, most), most  # 0 of a group without parameters

    def ranges(self) -> tuple[FlatRange, ...]:
        """The flat ranges of all groups."""
        return tuple(FlatRange(index, 0, layout.count) for index, layout in enumerate(self.layouts))

    def slabs(self) -> Iterator[tuple[int, int, Slab, SegmentState]]:
        """All slabs: extent, index within it, layout, state."""
        for number, (extent, states) in enumerate(zip(self.extents, self._states, strict=True)):
            for index, (slab, state) in enumerate(zip(extent.slabs, states, strict=True)):
                yield number, index, slab, state

    def prepare_state(self) -> list[Array]:
        """The state that the first step is going to need, to be touched; what it may need later, or in part, is not."""
        if self.iterative is not None:
            return []
        without = {(number, index) for number, index, _ in self.rows_only}
        return [
            state.prepare(field)[state.layout(field).elements(first, first + count)]
            for number, index, slab, state in self.slabs()
            if (number, index) not in without
            for group, first, count in zip(
                slab.groups,
                np.cumsum(slab.parameter_counts) - slab.parameter_counts,
                slab.parameter_counts,
                strict=True,
            )
            for field in self.fields(group, self.options[group].options)
            if state.has(field) and field.name not in state.state
        ]

    def release_all(self) -> None:
        """Lets go of the state of a job that is closed."""
        for _, _, _, state in self.slabs():
            state.release()

    def slab_state(self, extent: int, slab: int) -> SegmentState:
        """The state of a slab."""
        return self._states[extent][slab]

    def place(self, group: int, segment: int) -> tuple[int, SegmentPlace]:
        """The extent of a group, and where one of its segments lies there."""
        number = self._extent_of[group]
        extent = self.extents[number]
        return number, extent.places[group - extent.first_group][segment]

    def state(self, group: int, segment: int) -> SegmentPart:
        """The part of its slab's state that belongs to a segment of a group; shares its memory."""
        extent, place = self.place(group, segment)
        return self._states[extent][place.slab].part(place.rank)

    def locate(self, group: int, parameter: str) -> tuple[int, int]:
        """The segment of a parameter and its place in that segment; raises `UnknownParameter`."""
        layout = self.layouts[group]
        for index, segment in enumerate(layout.segments):
            for place, member in enumerate(segment.members):
                if layout.parameters[member].name == parameter:
                    return index, place
        raise UnknownParameter(where=f"group {self.options[group].group!r}", parameter=parameter[:200])


def extent_of_groups(specs: Sequence[GroupSpec], algorithm: str, first_group: int = 0) -> Extent:
    """Lays new groups out, in a job whose own algorithm is `algorithm`: a slab has groups of one algorithm."""
    layouts = [lay_out(spec.parameters) for spec in specs]
    return extent_of(layouts, first_group, [spec.algorithm or algorithm for spec in specs])


def _one_of_equal(known: dict[object, Options], options: Options) -> Options:
    """These options, or those that are equal to them: a step sees at a glance that groups go together."""
    return known.setdefault((*options.items(), singles(options)), options)


def _empty_state(extent: Extent, slab: Slab) -> SegmentState:
    return SegmentState(slab.sizes, slab.element_dtype, shapes=extent.shapes(slab), groups=slab.parameter_counts)
