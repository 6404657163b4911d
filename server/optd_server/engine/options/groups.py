"""The groups of a job: their algorithms, layouts, options and optimizer state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optd_server.engine.options.by_name import check_matches, check_rules, fields
from optd_server.engine.options.in_force import InForce
from optd_server.engine.options.resolution import (
    algorithm_of,
    check_fixed,
    find_algorithm,
    resolve_group,
    resolve_options,
)
from optd_server.optim.algorithm import Algorithm, Iterative, StateField
from optd_server.optim.option import singles
from optd_server.optim.rules import RULES
from optd_server.optim.segment import SegmentPart, SegmentState
from optd_server.store.extents import Extent, SegmentPlace, Slab, extent_of
from optd_server.store.flat import Array, copied
from optd_server.store.versions import StepRanges
from optd_wire.errors import OptionConflict, UnknownGroup, UnknownParameter
from optd_wire.layout import GroupLayout, lay_out
from optd_wire.values import (
    FlatRange,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobSpec,
    Options,
)

PARAMETER_COST = 64
"""The bookkeeping for one parameter takes about as long as arithmetic on this many elements."""


class LastChange(NamedTuple):
    """When an option last changed: the revision of its group after the change, and the job's version."""

    revision: int
    version: int


@dataclass(frozen=True, slots=True)
class GroupKept:
    """The part of a group that survives a restart, apart from its share of the slabs' state."""

    algorithm: str
    layout: GroupLayout
    options: GroupOptions
    last_changed: dict[str, LastChange]
    """When each option that was ever changed last changed."""
    extent: int
    """The index of the extent that it lies in."""


class Groups:
    """The ordered list of a job's groups, which only grows. Only the job's writer changes it."""

    def __init__(self, algorithm: Algorithm, defaults: Options) -> None:
        self.algorithm = algorithm
        """The job's algorithm, which groups have that name none of their own."""
        self.defaults = defaults
        """Resolved options of the job's algorithm."""
        self.algorithms: list[Algorithm] = []
        """The algorithm of each group."""
        self.distinct_algorithms: tuple[Algorithm, ...] = ()
        """The algorithms of all groups, each once."""
        self.iterative: Iterative | None = None
        """The algorithm of the only group, if that is iterative."""
        self.rows_only: list[tuple[int, int, Algorithm]] = []
        """Extent, index and algorithm of the slabs whose algorithm takes no whole gradients."""
        self.layouts: list[GroupLayout] = []
        self.options: list[GroupOptions] = []
        """A new list after each change, so that its identity tells whether anything has changed."""
        self._last_changed: list[dict[str, LastChange]] = []
        """By group, when each option that was ever changed last changed."""
        self.extents: tuple[Extent, ...] = ()
        self.names: tuple[str, ...] = ()
        """The groups' names in order."""
        self.elements = 0
        """How many elements all groups have."""
        self.parameters = 0
        """How many parameters all groups have."""
        self.state_fields: list[Mapping[str, StateField]] = []
        """By group, all state fields that a parameter may have, by name. They depend on fixed options only."""
        self._fields_of: dict[str, Mapping[str, StateField]] = {}
        """The same, by the name of the algorithm."""
        self._states: list[list[SegmentState]] = []
        self._extent_of: list[int] = []
        self._index_of: dict[str, int] = {}
        self.in_force = InForce(self)
        """Caches of what follows from the options; losing them changes no bits."""

    @classmethod
    def of(cls, algorithm: Algorithm, spec: JobSpec) -> "Groups":
        """Return the groups of a checked spec, at version 0."""
        groups = cls(algorithm, resolve_options(algorithm, spec.defaults))
        groups.add(spec.groups, version=0)
        return groups

    def __len__(self) -> int:
        return len(self.layouts)

    def add(self, specs: Sequence[GroupSpec], version: int) -> None:
        """Append checked groups as one extent. Their options take effect at `version`."""
        extent = extent_of_groups(specs, self.algorithm.name, len(self))
        number, equal = len(self.extents), dict[object, Options]()
        added = []
        for spec, layout in zip(specs, extent.layouts, strict=True):
            algorithm = algorithm_of(spec, self.algorithm).name
            resolved = _one_of_equal(equal, resolve_group(spec, self.algorithm, self.defaults))
            options = GroupOptions(spec.name, resolved, since_version=version, algorithm=algorithm)
            added.append(GroupKept(algorithm, layout, options, {}, number))
        self._append(extent, added)

    def _append(self, extent: Extent, groups: Sequence[GroupKept]) -> None:
        """Append the groups of an extent, with the state of parameters that have had no step."""
        number = len(self.extents)
        for group in groups:
            self._index_of[group.options.group] = len(self)
            self.layouts.append(group.layout)
            self.elements += group.layout.count
            self.parameters += len(group.layout.parameters)
            self.options.append(group.options)
            self._last_changed.append(group.last_changed)
            self._extent_of.append(number)
            self._add_algorithm(find_algorithm(group.algorithm), group.options.options)
        self.extents = (*self.extents, extent)
        self.names = tuple(self._index_of)
        self._states.append([_empty_state(extent, slab) for slab in extent.slabs])
        for index, slab in enumerate(extent.slabs):
            algorithm = self.algorithm_of(slab)
            if algorithm.rows is not None and algorithm.rows.only:
                self.rows_only.append((number, index, algorithm))

    def _add_algorithm(self, algorithm: Algorithm, options: Options) -> None:
        """Record the algorithm of the next group, whose options are `options`."""
        self.algorithms.append(algorithm)
        if algorithm.name not in self._fields_of:
            self._fields_of[algorithm.name] = {field.name: field for field in algorithm.state_of(options)}
            self.distinct_algorithms = (*self.distinct_algorithms, algorithm)
        self.state_fields.append(self._fields_of[algorithm.name])
        if isinstance(algorithm, Iterative):
            self.iterative = algorithm

    def algorithm_of(self, slab: Slab) -> Algorithm:
        """Return the algorithm of a slab. All groups of a slab have the same."""
        return self.algorithms[slab.groups[0]]

    @property
    def state_names(self) -> list[str]:
        """The names of the state fields that a parameter of any group may have."""
        return list(dict.fromkeys(name for fields in self._fields_of.values() for name in fields))

    def index(self, name: str, job: str) -> int:
        """Return the index of a group; raise `UnknownGroup`."""
        if name in self._index_of:
            return self._index_of[name]
        raise UnknownGroup(job=job, group=name[:200], groups=", ".join(self.names))

    def holders(self) -> dict[str, str]:
        """Map the name of each parameter to the name of its group."""
        return {
            parameter.name: options.group
            for layout, options in zip(self.layouts, self.options, strict=True)
            for parameter in layout.parameters
        }

    def plan_updates(self, updates: Sequence[GroupUpdate], job: str, version: int) -> list[tuple[int, GroupOptions]]:
        """Return the index and the new options of each group that `updates` would change.

        This changes nothing itself. Raise `UnknownGroup`, `OptionConflict`, or the problem of a value.
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
            check_rules(algorithm, resolved, self.in_force.matching(index, resolved))
            self._check_concurrent(index, update, current, resolved)
            resolved = _one_of_equal(equal, resolved)
            planned[index] = replace(current, options=resolved, revision=current.revision + 1, since_version=version)
        if ruled:
            now = [self.in_force.matching(i, planned.get(i, known).options) for i, known in enumerate(self.options)]
            check_matches([now[index] for index in sorted(ruled)], now)
        return list(planned.items())

    def _check_concurrent(self, index: int, update: GroupUpdate, current: GroupOptions, wanted: Options) -> None:
        """Raise `OptionConflict` if an option has changed since the revision that the update expects.

        `current` holds the group's options after the updates that are planned before this one.
        """
        expected, committed = update.expected_revision, self.options[index].options
        if expected is None or expected == current.revision:
            return
        for name in {**current.options, **wanted}:
            value, theirs = wanted.get(name), current.options.get(name)
            if value == theirs:
                continue
            since = self._last_changed[index].get(name, LastChange(0, 0))
            if theirs != committed.get(name):  # an update that is planned before this one has changed it
                since = LastChange(current.revision, current.since_version)
            if since.revision > expected or expected > current.revision:
                raise OptionConflict(group=current.group, option=name, ours=value, theirs=theirs, since=since.version)

    def change_options(self, changes: Iterable[tuple[int, GroupOptions]]) -> None:
        """Put into force the options that `plan_updates` returned."""
        options = list(self.options)
        for index, changed in changes:
            before = options[index].options
            for name in {**before, **changed.options}:
                if before.get(name) != changed.options.get(name):
                    self._last_changed[index][name] = LastChange(changed.revision, changed.since_version)
            options[index] = changed
        self.options = options

    def cost(self, elements: int) -> int:
        """Return the cost of work on `elements` elements, in elements. Each parameter adds a fixed cost."""
        return elements + PARAMETER_COST * self.parameters

    def kept(self) -> list[GroupKept]:
        """Return what survives a restart of each group, apart from its share of the slabs' state."""
        return [
            GroupKept(algorithm.name, layout, options, dict(changed), extent)
            for algorithm, layout, options, changed, extent in zip(
                self.algorithms, self.layouts, self.options, self._last_changed, self._extent_of, strict=True
            )
        ]

    def copy(self, spare: "Groups | None" = None) -> "Groups":
        """Return equal groups that share no memory with these.

        The memory of `spare`, a copy that nobody needs, is used again: new memory costs more time than the copying.
        """
        made = Groups(self.algorithm, self.defaults)
        kept = self.kept()
        old = {} if spare is None else {(number, index): state.state for number, index, _, state in spare.slabs()}
        for extent in self.extents:
            made._append(extent, kept[extent.first_group : extent.first_group + len(extent.layouts)])
        for number, index, _, state in self.slabs():
            made.put_state(
                number,
                index,
                steps=state.steps.copy(),
                state={name: copied(own, old.get((number, index), {}).get(name)) for name, own in state.state.items()},
                started={name: flags.copy() for name, flags in state.started.items()},
            )
        return made

    @classmethod
    def restored(cls, algorithm: Algorithm, defaults: Options, kept: Sequence[GroupKept]) -> "Groups":
        """Return the groups that `kept` told of, with the state of parameters that have had no step."""
        made, equal = cls(algorithm, defaults), dict[object, Options]()
        for _, members in groupby(kept, lambda group: group.extent):
            groups = [
                replace(group, options=replace(group.options, options=_one_of_equal(equal, group.options.options)))
                for group in members
            ]
            layouts = [group.layout for group in groups]
            made._append(extent_of(layouts, len(made), [group.algorithm for group in groups]), groups)
        return made

    def put_state(
        self,
        extent: int,
        index: int,
        *,
        steps: npt.NDArray[np.int64],
        state: dict[str, Array],
        started: dict[str, npt.NDArray[np.bool_]],
    ) -> None:
        """Give a slab its state; takes the arrays over."""
        slab = self.extents[extent].slabs[index]
        fields = self.state_fields[slab.groups[0]]
        self._states[extent][index] = SegmentState(
            slab.sizes,
            slab.element_dtype,
            shapes=self._states[extent][index].shapes,
            groups=slab.parameter_counts,
            steps=steps,
            state=state,
            started=started,
            fields=[fields[name] for name in state],
        )

    def fields(self, group: int, options: Options) -> set[StateField]:
        """Return the state fields that a group's parameters need if the group has these options."""
        return fields(self.algorithms[group], options, self.in_force.matching(group, options))

    def info(self, index: int) -> GroupInfo:
        """Describe a group and its parameters."""
        return GroupInfo(index, self.options[index], self.layouts[index].parameters)

    def infos(self) -> tuple[GroupInfo, ...]:
        """Describe all groups and their parameters."""
        return tuple(self.info(index) for index in range(len(self)))

    def step_ranges(self) -> StepRanges:
        """Return, by group, the fewest and the most steps that one of its parameters has had."""
        if len(self.extents) == 1 and len(self._states[0]) == 1 and len(self.extents[0].slabs[0].groups) == len(self):
            return self._states[0][0].step_ranges()
        fewest = np.full(len(self), np.iinfo(np.int64).max)
        most = np.zeros(len(self), np.int64)
        for _, _, slab, state in self.slabs():
            members = np.asarray(slab.groups)
            lows, highs = state.step_ranges()
            fewest[members] = np.minimum(fewest[members], lows)
            most[members] = np.maximum(most[members], highs)
        return np.minimum(fewest, most), most  # a group without parameters has 0

    def ranges(self) -> tuple[FlatRange, ...]:
        """Return the flat ranges of all groups."""
        return tuple(FlatRange(index, 0, layout.count) for index, layout in enumerate(self.layouts))

    def slabs(self) -> Iterator[tuple[int, int, Slab, SegmentState]]:
        """Yield each slab as the number of its extent, its index there, its layout and its state."""
        for number, (extent, states) in enumerate(zip(self.extents, self._states, strict=True)):
            for index, (slab, state) in enumerate(zip(extent.slabs, states, strict=True)):
                yield number, index, slab, state

    def prepare_state(self) -> list[Array]:
        """Allocate the state that the first step needs, and return it so that the caller can prefault it.

        State that only a later step may need, or that a step needs in part, is left out.
        """
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
        """Release the state of a closed job."""
        for _, _, _, state in self.slabs():
            state.release()

    def slab_state(self, extent: int, slab: int) -> SegmentState:
        """Return the state of a slab."""
        return self._states[extent][slab]

    def place(self, group: int, segment: int) -> tuple[int, SegmentPlace]:
        """Return the number of a group's extent, and the place of one of its segments there."""
        number = self._extent_of[group]
        extent = self.extents[number]
        return number, extent.places[group - extent.first_group][segment]

    def state(self, group: int, segment: int) -> SegmentPart:
        """Return a segment's part of the state of its slab, as a view."""
        extent, place = self.place(group, segment)
        return self._states[extent][place.slab].part(place.rank)

    def locate(self, group: int, parameter: str) -> tuple[int, int]:
        """Return the segment of a parameter and its place in that segment; raise `UnknownParameter`."""
        layout = self.layouts[group]
        for index, segment in enumerate(layout.segments):
            for place, member in enumerate(segment.members):
                if layout.parameters[member].name == parameter:
                    return index, place
        raise UnknownParameter(where=f"group {self.options[group].group!r}", parameter=parameter[:200])


def extent_of_groups(specs: Sequence[GroupSpec], algorithm: str, first_group: int = 0) -> Extent:
    """Lay out new groups of a job whose own algorithm is `algorithm`. All groups of a slab have the same algorithm."""
    layouts = [lay_out(spec.parameters) for spec in specs]
    return extent_of(layouts, first_group, [spec.algorithm or algorithm for spec in specs])


def _one_of_equal(known: dict[object, Options], options: Options) -> Options:
    """Return one shared object for equal options, so that a step can compare groups by identity."""
    return known.setdefault((*options.items(), singles(options)), options)


def _empty_state(extent: Extent, slab: Slab) -> SegmentState:
    return SegmentState(slab.sizes, slab.element_dtype, shapes=extent.shapes(slab), groups=slab.parameter_counts)
