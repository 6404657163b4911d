"""The numbers of a job as fields: weights, last gradient, optimizer state; read as copies, replaced whole.

Read for inspection and checkpoints, replaced to restore. Both happen between two steps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from optd_server.engine.groups import Groups
from optd_server.engine.job import Job
from optd_server.engine.model import Model
from optd_server.engine.plan import Memory
from optd_server.optim.segment import SegmentPart
from optd_server.store.flat import Array, FlatBuffers, FrameSink, bytes_of
from optd_wire.errors import (
    InvalidRequest,
    StructureMismatch,
    UnknownField,
)
from optd_wire.frames import Frame
from optd_wire.layout import Segment
from optd_wire.values import (
    GRADIENT,
    WEIGHTS,
    GroupState,
    JobVersion,
    ReadStateResult,
    StateEntries,
    WriteStateHeader,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is read: fields, and of which group and parameter (None: all)."""

    fields: tuple[str, ...]
    group: int | None = None
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class StateReading:
    """What was read: steps and entries of the groups, and the numbers as frames of any length."""

    result: ReadStateResult
    frames: list[Frame]


def select(job: Job, fields: Sequence[str], group: str, parameter: str) -> Selection:
    """Names to a selection; raises `UnknownField`, `UnknownGroup` or `UnknownParameter`."""
    groups = job.model.groups
    states = [field.name for field in groups.algorithm.state]
    known = [WEIGHTS, GRADIENT, *states]
    for field in fields:
        if field not in known:
            raise UnknownField(job=job.name, field=field[:200], fields=", ".join(known))
    index = groups.index(group, job.name) if group else None
    if parameter:
        if index is None:
            raise InvalidRequest(problem="a parameter is selected without its group")
        groups.locate(index, parameter)
    return Selection(tuple(fields) or tuple(states), index, parameter)


async def read_state(job: Job, selection: Selection) -> StateReading:
    """Copies the selected numbers of one version."""
    return await job.between_steps(job.model.elements, lambda: _read(job.model, selection))


def _read(model: Model, selection: Selection) -> StateReading:
    indices = range(len(model.groups)) if selection.group is None else [selection.group]
    frames = [
        Frame.of(group, segment.offset + start, np.array(array[start:stop]), field)
        for group in indices
        for index, segment in enumerate(model.groups.layouts[group].segments)
        for state in (model.groups.state(group, index),)
        for start, stop in _elements(model.groups, group, segment, index, selection.parameter)
        for field, array in fields_of(model, group, index, state)
        if field in selection.fields
    ]
    groups = tuple(_group_state(model, index, with_gradient=GRADIENT in selection.fields) for index in indices)
    return StateReading(ReadStateResult(model.version, groups), frames)


def fields_of(model: Model, group: int, index: int, state: SegmentPart) -> Iterator[tuple[str, Array]]:
    """All fields that a segment has now. Absent parameters of a gradient or a state have zeros or older numbers."""
    yield WEIGHTS, model.snapshots.current.arrays(group)[index]
    gradient = model.gradient(group, index)
    if gradient is not None:
        yield GRADIENT, gradient
    yield from state.state.items()


def _elements(groups: Groups, group: int, segment: Segment, index: int, parameter: str) -> list[tuple[int, int]]:
    if not parameter:
        return [(0, segment.count)]
    holder, place = groups.locate(group, parameter)
    if holder != index:
        return []
    state = groups.state(group, index)
    start = int(state.offsets[place])
    return [(start, start + int(state.sizes[place]))]


def _group_state(model: Model, group: int, *, with_gradient: bool) -> GroupState:
    """Steps and entries in the order of the group's list, put together from its segments."""
    groups = model.groups
    layout = groups.layouts[group]
    steps = [0] * len(layout.parameters)
    entries = {
        field.name: [False] * len(layout.parameters)
        for field in groups.algorithm.state
        if any(field.name in groups.state(group, index).state for index in range(len(layout.segments)))
    }
    if with_gradient:
        entries[GRADIENT] = [False] * len(layout.parameters)
    for index, segment in enumerate(layout.segments):
        state = groups.state(group, index)
        for place, member in enumerate(segment.members):
            if with_gradient:
                entries[GRADIENT][member] = model.has_gradient(group, index, place)
            steps[member] = int(state.steps[place])
            for name, started in state.started.items():
                entries[name][member] = bool(started[place])
    return GroupState(group, tuple(steps), tuple(StateEntries(name, tuple(flags)) for name, flags in entries.items()))


def selected_bytes(job: Job, selection: Selection) -> int:
    """How much a copy of the selection takes; a single parameter is counted as its group."""
    layouts = job.model.groups.layouts
    chosen = layouts if selection.group is None else [layouts[selection.group]]
    return bytes_of(chosen) * len(selection.fields)


class StateUpload:
    """Fields that are on their way to replace those of a job. Nothing changes until `apply`."""

    def __init__(self, job: Job, header: WriteStateHeader) -> None:
        model = job.model
        self._job = job
        self._groups = header.groups
        self._worker, self._epoch = header.worker, header.epoch
        self._known = [WEIGHTS, *(field.name for field in model.groups.algorithm.state)]
        self._extents = list(model.groups.extents)
        self._sinks: dict[str, FrameSink] = {}
        _check_groups(job, header.groups, self._known)

    def room(self, memory: Memory) -> AbstractContextManager[None]:
        """Plans memory for all fields while they arrive; raises `MemoryExceeded`."""
        needed = bytes_of(layout for extent in self._extents for layout in extent.layouts) * len(self._known)
        return memory.lend(f"new state of job {self._job.name!r}", needed)

    def write(self, frames: Sequence[Frame]) -> None:
        """Takes frames; raises `UnknownField` or what `FrameSink.write` raises."""
        for frame in frames:
            self._sink(frame.field or WEIGHTS).write_all((frame,))

    def _sink(self, field: str) -> FrameSink:
        if field not in self._known:
            raise UnknownField(job=self._job.name, field=field[:200], fields=", ".join(self._known))
        if field not in self._sinks:
            names = self._job.model.groups.names
            self._sinks[field] = FrameSink(FlatBuffers(self._extents), field, names)
        return self._sinks[field]

    async def apply(self, clock: Callable[[], float]) -> JobVersion:
        """Replaces what was written, all or nothing.

        Raises `IncompleteParameter`, or `StaleEpoch` where the worker has been fenced meanwhile.
        """
        for sink in self._sinks.values():
            sink.ledger.presence()
        entries = {entry.field for group in self._groups for entry in group.entries}
        self._job.model.reserve_states((entries | self._sinks.keys()) - {WEIGHTS})
        model = self._job.model

        def check() -> None:
            self._job.workers.check(self._worker, self._epoch, clock())

        return await self._job.replace_weights(model.elements, self._replace, check)

    def _replace(self, current: FlatBuffers, following: FlatBuffers) -> None:
        groups = self._job.model.groups
        for given in self._groups:
            _put_group_state(groups, given)
        for target, source in zip(following.all_slabs(), current.all_slabs(), strict=True):
            target[:] = source
        for field, sink in self._sinks.items():
            for extent, slab, start, stop in sink.ledger.written():
                if field == WEIGHTS:
                    target = following.slabs[extent][slab]
                else:
                    target = groups.slab_state(extent, slab).allocate(field)
                target[start:stop] = sink.buffers.slabs[extent][slab][start:stop]


def _check_groups(job: Job, groups: Sequence[GroupState], known: Sequence[str]) -> None:
    for given in groups:
        if given.group >= len(job.model.groups):
            raise InvalidRequest(problem=f"job {job.name!r} has no group with index {given.group}")
        count = len(job.model.groups.layouts[given.group].parameters)
        for what, values in [("steps", given.steps), *((e.field, e.present) for e in given.entries)]:
            if len(values) != count:
                raise StructureMismatch(
                    what=f"{what} of group {given.group}", expected=f"{count} values", got=len(values)
                )
        for entry in given.entries:
            if entry.field not in known or entry.field == WEIGHTS:
                raise UnknownField(job=job.name, field=entry.field[:200], fields=", ".join(known[1:]))
        if any(steps >= 1 << 62 for steps in given.steps):
            raise InvalidRequest(problem=f"steps of group {given.group} must be in [0, 2**62)")


def _put_group_state(groups: Groups, given: GroupState) -> None:
    layout = groups.layouts[given.group]
    for index, segment in enumerate(layout.segments):
        extent, place = groups.place(given.group, index)
        whole = groups.slab_state(extent, place.slab)
        present = {entry.field: entry.present for entry in given.entries}
        for field in present:
            whole.allocate(field)
        state = whole.part(place.rank)
        members = list(segment.members)
        state.steps[:] = [given.steps[member] for member in members]
        for field, array in state.state.items():
            started = state.started[field]
            started[:] = [present[field][member] for member in members] if field in present else False
            # Algorithms rely on zeros where a parameter has no state yet.
            array[np.repeat(~started, state.sizes)] = 0
