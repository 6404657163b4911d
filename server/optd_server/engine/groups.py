"""The groups of a job: their layouts, options and optimizer state."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from optd_server.engine.options import resolve_options
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.segment import SegmentState
from optd_wire.dtypes import DTYPES
from optd_wire.errors import OptionConflict, UnknownGroup, UnknownParameter
from optd_wire.layout import GroupLayout, Segment, lay_out
from optd_wire.values import (
    FlatRange,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobSpec,
    Options,
)


class Groups:
    """An ordered list of groups that only grows. Changed by the job's writer alone."""

    def __init__(self, algorithm: Algorithm, defaults: Options) -> None:
        self.algorithm = algorithm
        self.defaults = defaults
        self.layouts: list[GroupLayout] = []
        self.options: list[GroupOptions] = []
        self.states: list[list[SegmentState]] = []

    @classmethod
    def of(cls, algorithm: Algorithm, spec: JobSpec) -> "Groups":
        """The groups of a checked spec, at version 0."""
        groups = cls(algorithm, resolve_options(algorithm, spec.defaults))
        for group in spec.groups:
            groups.add(group, version=0)
        return groups

    def __len__(self) -> int:
        return len(self.layouts)

    @property
    def names(self) -> list[str]:
        """The groups' names in order."""
        return [options.group for options in self.options]

    @property
    def elements(self) -> int:
        """How many elements all groups have."""
        return sum(layout.count for layout in self.layouts)

    @property
    def parameters(self) -> int:
        """How many parameters all groups have."""
        return sum(len(layout.parameters) for layout in self.layouts)

    def add(self, spec: GroupSpec, version: int) -> GroupInfo:
        """Appends a checked group whose options take effect at `version`."""
        layout = lay_out(spec.parameters)
        resolved = resolve_options(self.algorithm, self.defaults, spec.options)
        self.layouts.append(layout)
        self.options.append(GroupOptions(spec.name, resolved, revision=0, since_version=version))
        self.states.append([_empty_state(layout, segment) for segment in layout.segments])
        return self.info(len(self) - 1)

    def index(self, name: str, job: str) -> int:
        """The index of a group; raises `UnknownGroup`."""
        for index, options in enumerate(self.options):
            if options.group == name:
                return index
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
        for update in updates:
            index = self.index(update.group, job)
            current = planned.get(index, self.options[index])
            resolved = resolve_options(self.algorithm, current.options, update.options)
            if resolved == current.options:
                continue
            if update.expected_revision not in (None, current.revision):
                raise _conflict(current, resolved)
            planned[index] = replace(current, options=resolved, revision=current.revision + 1, since_version=version)
        return list(planned.items())

    def info(self, index: int) -> GroupInfo:
        """A group with its parameters."""
        return GroupInfo(index, self.options[index], self.layouts[index].parameters)

    def infos(self) -> tuple[GroupInfo, ...]:
        """All groups with their parameters."""
        return tuple(self.info(index) for index in range(len(self)))

    def step_ranges(self) -> tuple[tuple[int, int], ...]:
        """By group, the fewest and the most steps that a parameter of it has had."""
        return tuple(
            (min(int(state.steps.min()) for state in states), max(int(state.steps.max()) for state in states))
            for states in self.states
        )

    def ranges(self) -> tuple[FlatRange, ...]:
        """The flat ranges of all groups."""
        return tuple(FlatRange(index, 0, layout.count) for index, layout in enumerate(self.layouts))

    def segments(self) -> Iterator[tuple[int, int, Segment, SegmentState]]:
        """All segments: group, index within it, layout, state."""
        for group, (layout, states) in enumerate(zip(self.layouts, self.states, strict=True)):
            for index, (segment, state) in enumerate(zip(layout.segments, states, strict=True)):
                yield group, index, segment, state

    def locate(self, group: int, parameter: str) -> tuple[int, int]:
        """The segment of a parameter and its place in that segment; raises `UnknownParameter`."""
        layout = self.layouts[group]
        for index, segment in enumerate(layout.segments):
            for place, member in enumerate(segment.members):
                if layout.parameters[member].name == parameter:
                    return index, place
        raise UnknownParameter(where=f"group {self.options[group].group!r}", parameter=parameter[:200])


def _empty_state(layout: GroupLayout, segment: Segment) -> SegmentState:
    sizes = [layout.parameters[member].size for member in segment.members]
    return SegmentState(sizes, DTYPES[segment.dtype])


def _conflict(current: GroupOptions, wanted: Options) -> OptionConflict:
    option = next(name for name, value in wanted.items() if value != current.options[name])
    return OptionConflict(
        group=current.group,
        option=option,
        ours=wanted[option],
        theirs=current.options[option],
        since=current.since_version,
    )
