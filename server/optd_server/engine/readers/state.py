"""Reads the numbers of a job as copies of fields: weights, last gradient, optimizer state, averages.

Inspection and checkpoints use this. A read happens between two steps, so all of it is of one version.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optd_server.engine.job import Job
from optd_server.engine.options.fields import layout_of, shapes_of
from optd_server.engine.options.groups import Groups
from optd_server.engine.readers.looking import has_gradient, last_gradient, look
from optd_server.optim.algorithm import StateField
from optd_server.store.flat import Array, bytes_of, computed_bytes_of
from optd_wire.dtypes import DTYPES
from optd_wire.errors import InvalidRequest, UnknownField
from optd_wire.frames import Frame
from optd_wire.layout import Segment
from optd_wire.values import GRADIENT, STEP, WEIGHTS, GroupState, ReadStateResult, StateEntries


@dataclass(frozen=True, slots=True)
class Selection:
    """The fields to read, of one group and parameter or of all (None and "")."""

    fields: tuple[str, ...]
    group: int | None = None
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class StateReading:
    """The result of a read: steps and entries of the groups, and the numbers as frames of any length."""

    result: ReadStateResult
    frames: list[Frame]


def select(job: Job, fields: Sequence[str], group: str, parameter: str) -> Selection:
    """Turns names into a selection.

    Raises `UnknownField`, `UnknownGroup`, `UnknownParameter`, or `InvalidRequest` for a parameter without a group.
    """
    groups = job.state.groups
    states = groups.state_names
    known = [WEIGHTS, GRADIENT, STEP, *states, *(info.name for info in job.state.averages.infos())]
    for field in fields:
        if field not in known:
            raise UnknownField(job=job.name, field=field[:200], fields=", ".join(known))
    index = groups.index(group, job.name) if group else None
    if parameter:
        if index is None:
            raise InvalidRequest(problem="a parameter is selected without its group")
        groups.locate(index, parameter)
    return Selection(tuple(fields) or tuple(states), index, parameter)


async def read_state(job: Job, selection: Selection, patience: Callable[[], Awaitable[None]]) -> StateReading:
    """Copies the selected numbers of one version.

    If the gradient is selected and the last one is not kept, waits for the next step, at most as long as `patience()`
    takes. If no step comes, the result has no gradient.
    """

    def work() -> StateReading:
        return _read(job, selection)

    if GRADIENT in selection.fields:
        return (await look(job, job.state.groups.elements, work, patience, lent=False))[0]
    return await job.between_steps(job.state.groups.elements, work)


def _read(job: Job, selection: Selection) -> StateReading:
    indices = range(len(job.state.groups)) if selection.group is None else [selection.group]
    frames = [frame for group in indices for frame in _frames(job, group, selection)]
    groups = tuple(_group_state(job, index, with_gradient=GRADIENT in selection.fields) for index in indices)
    return StateReading(ReadStateResult(job.version, groups, job.state.averages.infos()), frames)


def _frames(job: Job, group: int, selection: Selection) -> Iterator[Frame]:
    """Yields the selected numbers of one group."""
    layout = job.state.groups.layouts[group]
    for index, segment in enumerate(layout.segments):
        for start, stop in _elements(job.state.groups, group, segment, index, selection.parameter):
            for field, array in _beside_weights(job, group, index):
                if field in selection.fields:
                    yield Frame.of(group, segment.offset + start, array[start:stop].copy(), field)
    for shaped in job.state.groups.state_fields[group].values():
        if not shaped.elementwise and shaped.name in selection.fields:
            yield from _shaped_frames(job.state.groups, group, shaped, selection.parameter)


def _beside_weights(job: Job, group: int, index: int) -> Iterator[tuple[str, Array]]:
    """Yields the fields of a segment that have one number for each weight."""
    yield WEIGHTS, job.snapshots.current.arrays(group)[index]
    gradient = last_gradient(job, group, index)
    if gradient is not None:
        yield GRADIENT, gradient
    for info in job.state.averages.infos():
        if info.updates:
            yield info.name, job.state.averages.find(info.name, job.name).buffers.arrays[group][index]
    state = job.state.groups.state(group, index).state
    yield from (
        (name, state[name]) for name, field in job.state.groups.state_fields[group].items() if _has(state, field)
    )


def _has(state: Mapping[str, Array], field: StateField) -> bool:
    return field.elementwise and field.name in state


def _shaped_frames(groups: Groups, group: int, field: StateField, parameter: str) -> Iterator[Frame]:
    """Yields a field with a flat buffer of its own: a frame for each of its segments, or for the one parameter."""
    layout = layout_of(shapes_of(field, groups.layouts[group]), groups.layouts[group])
    arrays = dict(_shaped_arrays(groups, group, field))
    for segment in layout.segments if arrays else ():
        chosen = [layout.parameters[member] for member in segment.members]
        chosen = [each for each in chosen if parameter in ("", each.name)]
        if chosen:
            # A field is not allocated before a step needs it.
            parts = [arrays.get(each.name, np.zeros(each.size, DTYPES[each.dtype])) for each in chosen]
            yield Frame.of(group, chosen[0].offset, np.concatenate(parts), field.name)


def _shaped_arrays(groups: Groups, group: int, field: StateField) -> Iterator[tuple[str, Array]]:
    """Yields the flat state of each parameter of a group, by name, if the field is allocated."""
    layout = groups.layouts[group]
    for index, segment in enumerate(layout.segments):
        state = groups.state(group, index)
        if field.name in state.state:
            for place, member in enumerate(segment.members):
                yield layout.parameters[member].name, state.of(field.name, place).reshape(-1)


def numbers_of(job: Job, group: int, index: int, place: int) -> Iterator[tuple[str, Array]]:
    """Yields the fields of a parameter that hold meaningful numbers."""
    state = job.state.groups.state(group, index)
    start = int(state.offsets[place])
    stop = start + int(state.sizes[place])
    yield WEIGHTS, job.snapshots.current.arrays(group)[index][start:stop]
    gradient = last_gradient(job, group, index)
    if gradient is not None and has_gradient(job, group, index, place):
        yield GRADIENT, gradient[start:stop]
    yield from ((name, state.of(name, place)) for name, started in state.started.items() if started[place])


def _elements(groups: Groups, group: int, segment: Segment, index: int, parameter: str) -> list[tuple[int, int]]:
    if not parameter:
        return [(0, segment.count)]
    holder, place = groups.locate(group, parameter)
    if holder != index:
        return []
    state = groups.state(group, index)
    start = int(state.offsets[place])
    return [(start, start + int(state.sizes[place]))]


def _group_state(job: Job, group: int, *, with_gradient: bool) -> GroupState:
    """Returns the steps and entries of a group, gathered from its segments into the group's own order."""
    groups = job.state.groups
    layout, fields = groups.layouts[group], groups.state_fields[group]
    steps = [0] * len(layout.parameters)
    entries = {
        name: [False] * len(layout.parameters)
        for name in fields
        if any(name in groups.state(group, index).state for index in range(len(layout.segments)))
    }
    if with_gradient:
        entries[GRADIENT] = [False] * len(layout.parameters)
    for index, segment in enumerate(layout.segments):
        state = groups.state(group, index)
        for place, member in enumerate(segment.members):
            if with_gradient:
                entries[GRADIENT][member] = has_gradient(job, group, index, place)
            steps[member] = int(state.steps[place])
            for name, started in state.started.items():
                entries[name][member] = bool(started[place])
    shapes = {
        name: shapes_of(fields[name], layout) for name in entries if name != GRADIENT and not fields[name].elementwise
    }
    return GroupState(
        group,
        tuple(steps),
        tuple(StateEntries(name, tuple(flags), shapes.get(name, ())) for name, flags in entries.items()),
    )


def selected_bytes(job: Job, selection: Selection) -> int:
    """Returns the bytes of a copy of the selection. A single parameter is counted as its whole group."""
    groups = job.state.groups
    kept = {name for _, _, _, state in groups.slabs() for name in state.state}
    known = groups.state_names
    fields = [field for field in selection.fields if field in kept or field not in (STEP, *known)]
    total = 0
    for group in range(len(groups)) if selection.group is None else [selection.group]:
        chosen, own = [groups.layouts[group]], groups.state_fields[group]
        for field in fields:
            if field in own or field not in known:
                total += bytes_of(chosen) if field == WEIGHTS else computed_bytes_of(chosen)
    return total
