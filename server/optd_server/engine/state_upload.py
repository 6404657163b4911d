"""Replaces weights, state, averages and options of a job with what a worker uploads, all or nothing, between two steps.

A worker restores a checkpoint this way, or sends weights that its script has changed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from optd_server.engine import decide
from optd_server.engine.events import FieldWritten, OptionEdits, StateReplaced
from optd_server.engine.job import Job
from optd_server.engine.membership.members import Written
from optd_server.engine.memory import Memory
from optd_server.engine.options.fields import NOTHING, has, layout_of, shapes_of, state_bytes
from optd_server.engine.options.history import Origin
from optd_server.engine.options.registration import MAX_DIMS
from optd_server.store.extents import Extent, extent_of, in_compute_dtype
from optd_server.store.flat import FlatBuffers, FrameSink, bytes_of
from optd_wire.errors import (
    DtypeMismatch,
    InvalidRequest,
    OtherWorkers,
    ShapeMismatch,
    StructureMismatch,
    UnknownField,
    WeightsMovedOn,
)
from optd_wire.frames import Frame
from optd_wire.layout import GroupLayout
from optd_wire.values import WEIGHTS, AverageInfo, GroupState, StateEntries, StateShape, WriteStateHeader

MOST_STEPS = 1 << 62


class StateUpload:
    """Fields that a worker is uploading to replace those of a job. Nothing changes until `put_in_force`.

    `wall` is the time of the call, in seconds since the Unix epoch.
    """

    def __init__(self, job: Job, header: WriteStateHeader, wall: float) -> None:
        state = job.state
        self._job = job
        self._groups = header.groups
        self._updates = [(update, Origin(wall, header.worker)) for update in header.updates]
        self._worker, self._epoch = header.worker, header.epoch
        self._base = header.if_alone_at
        self._beside_others = header.beside_others
        self._write_id = header.write_id
        self._check_alone()
        self._fields = list(state.groups.state_fields)
        self._always = {field.name for each in state.groups.distinct_algorithms for field in each.all_state}
        self._states = state.groups.state_names
        self._averages = {info.name: info.updates for info in header.averages}
        self._check_averages()
        self._extents = list(state.groups.extents)
        self._sinks: dict[str, FrameSink] = {}
        self._shapes = {
            (group.group, entry.field): entry.shapes
            for group in header.groups
            for entry in group.entries
            if entry.shapes
        }
        self._layouts = list(state.groups.layouts)
        """The layouts of the groups that exist now. The worker knows of no groups that are added later."""
        _check_groups(job, header.groups)

    def _check_alone(self, *, is_whole: bool = False) -> None:
        """Raises `OtherWorkers` or `WeightsMovedOn` if the write would undo the work of others, and asked not to.

        Once the upload `is_whole`, weights that another worker wrote meanwhile are known to differ from it, so they
        are an obstacle even if the write allows other workers.
        """
        if self._base is None:
            return
        job, state = self._job, self._job.state
        others = sorted(name for name in job.leases.holders() if name != self._worker)
        if others and not self._beside_others:
            raise OtherWorkers(worker=self._worker, job=job.name, others=", ".join(map(repr, others)))
        version = state.version
        if self._base.version != version:
            now = f"of version {version}"
        elif self._base.revision < state.written_revision and (is_whole or not self._beside_others):
            now = f"others, written at revision {state.written_revision}"
        else:
            return
        raise WeightsMovedOn(worker=self._worker, job=job.name, base=self._base.version, now=now)

    def _check_averages(self) -> None:
        """Raises `UnknownAverage` if the job does not keep an average, `InvalidRequest` if a count is out of range."""
        for name, updates in self._averages.items():
            self._job.state.averages.find(name, self._job.name)
            if updates >= MOST_STEPS:
                raise InvalidRequest(problem=f"updates of average {name!r} must be in [0, 2**62), got {updates}")

    def room(self, memory: Memory) -> AbstractContextManager[None]:
        """Reserves memory for all fields while they arrive; raises `MemoryExceeded`."""
        layouts = [layout for extent in self._extents for layout in extent.layouts]
        wanted = self._always | {entry.field for group in self._groups for entry in group.entries}
        needed = bytes_of(layouts) * (1 + len(self._averages))
        for fields, layout in zip(self._fields, layouts, strict=True):
            needed += state_bytes((field for name, field in fields.items() if name in wanted), layout)
        return memory.lend(f"new state of job {self._job.name!r}", needed)

    def write(self, frames: Sequence[Frame]) -> None:
        """Receives frames; raises `UnknownField`, `InvalidRequest`, or what `FrameSink.write_all` raises."""
        for frame in frames:
            sink = self._sink(frame.field or WEIGHTS)
            if frame.field in self._states and frame.group < len(self._fields):
                _check_kept(self._job, frame.group, frame.field)
            sink.write_all((frame,))

    def _sink(self, field: str) -> FrameSink:
        if field not in (WEIGHTS, *self._states) and field not in self._averages:
            raise UnknownField(job=self._job.name, field=field[:200], fields=", ".join((WEIGHTS, *self._states)))
        if field in self._states and field not in self._always:
            named = any(entry.field == field for group in self._groups for entry in group.entries)
            if not named:
                raise InvalidRequest(problem=f"frames of {field} come without an entry that says who has it")
        if field not in self._sinks:
            names = self._job.state.groups.names
            self._sinks[field] = FrameSink(FlatBuffers(self._extents_of(field)), field, names)
        return self._sinks[field]

    def _own_buffer(self, field: str) -> bool:
        """Whether a field's frames address flat buffers of its own, rather than those of the weights."""
        if any(name == field for _, name in self._shapes):
            return True
        return any(field in fields and not fields[field].elementwise for fields in self._fields)

    def _layout(self, field: str, group: int, layout: GroupLayout) -> GroupLayout:
        """Returns the layout of a group that a field's frames address. It is empty if the group has no such field."""
        known = self._fields[group].get(field)
        absent = [StateShape(NOTHING, parameter.dtype) for parameter in layout.parameters]
        expected = absent if known is None else shapes_of(known, layout)
        return layout_of(self._shapes.get((group, field)) or expected, layout)

    def _extents_of(self, field: str) -> Sequence[Extent]:
        if field == WEIGHTS or field in self._averages:
            return self._extents
        if not self._own_buffer(field):
            return in_compute_dtype(self._extents)
        return [
            extent_of(
                [self._layout(field, group, layout) for group, layout in enumerate(each.layouts, each.first_group)],
                each.first_group,
            )
            for each in self._extents
        ]

    async def put_in_force(self) -> Written:
        """Applies the upload, all or nothing; returns the options of all groups and the job's version after it.

        An average must be written whole, unless nothing has entered it. If the `write_id` is that of the worker's last
        write, this changes nothing and returns the answer to that. Raises `IncompleteParameter`, `UnknownAverage`, the
        problem of an option, `StaleEpoch` if the worker has been fenced meanwhile, `OtherWorkers` or `WeightsMovedOn`.
        """
        for sink in self._sinks.values():
            sink.ledger.presence()
        for name, updates in self._averages.items():
            if updates:
                self._sink(name).ledger.require_all()
        self._check_complete()
        return await self._job.between_events(self._take)

    async def _take(self) -> Written:
        """Takes the event of the upload. An action of the job's writer."""
        job, state = self._job, self._job.state
        member = state.members.find(self._worker)
        known = None if member is None else member.answer_to(self._write_id)
        if known is not None:
            return known
        if not await self._is_done():
            compute = job.fold.compute()
            compute.into = await job.snapshots.spare()
            edits = decide.group_edits(state, self._updates)
            job.workers.check(self._worker, self._epoch)
            self._check_alone(is_whole=True)
            self._check_averages()
            state.averages.fit(state.groups.extents)
            entries = {entry.field for group in self._groups for entry in group.entries}
            fields = (entries | self._sinks.keys()) - {WEIGHTS, *self._averages}
            job.memory.reserve_states(fields, edits.groups)
            await job.fold.take(self._event(edits), compute)
        return tuple(state.groups.options), state.job_version

    def _event(self, edits: OptionEdits) -> StateReplaced:
        return StateReplaced(
            worker=self._worker,
            epoch=self._epoch,
            write_id=self._write_id,
            groups=self._groups,
            averages=tuple(AverageInfo(name, updates) for name, updates in self._averages.items()),
            fields=tuple(self._written(name, sink) for name, sink in self._sinks.items()),
            edits=edits,
        )

    def _written(self, name: str, sink: FrameSink) -> FieldWritten:
        if not self._own_buffer(name):
            return FieldWritten(name, None, sink.buffers, tuple(sink.ledger.written()))
        layouts = tuple(self._layout(name, group, layout) for group, layout in enumerate(self._layouts))
        ranges, parameters = tuple(sink.ledger.written()), tuple(sorted(sink.ledger.parameters()))
        return FieldWritten(name, layouts, sink.buffers, ranges, parameters)

    async def _is_done(self) -> bool:
        """Whether another worker has already written these weights, and this upload has nothing else."""
        state, base = self._job.state, self._base
        if base is None or not self._beside_others or self._sinks.keys() != {WEIGHTS} or self._groups or self._updates:
            return False
        if base.version != state.version or base.revision >= state.written_revision:
            return False
        return await self._job.offload.run(state.groups.cost(state.groups.elements), self._are_weights)

    def _are_weights(self) -> bool:
        """Whether the job's weights equal the uploaded ones."""
        current, sink = self._job.state.weights.buffers, self._sinks[WEIGHTS]
        return all(
            np.array_equal(current.slabs[extent][slab][start:stop], sink.buffers.slabs[extent][slab][start:stop])
            for extent, slab, start, stop in sink.ledger.written()
        )

    def _check_complete(self) -> None:
        """Raises `InvalidRequest` if an iterative algorithm could not continue from the uploaded state."""
        algorithm = self._job.state.groups.iterative
        if algorithm is not None:
            for group in self._groups:
                for entry in group.entries:
                    if (
                        self._fields[group.group][entry.field].elementwise
                        and any(entry.present)
                        and not all(entry.present)
                    ):
                        problem = f"have {entry.field} of all parameters or of none"
                        raise InvalidRequest(problem=f"state of {algorithm.name} must {problem}")
                # Fields that are not elementwise belong to the first parameter, as in torch.
                lacks = algorithm.incomplete({entry.field for entry in group.entries if entry.present[0]})
                if lacks is not None:
                    raise InvalidRequest(problem=f"state of {algorithm.name} must {lacks}")


def _check_groups(job: Job, groups: Sequence[GroupState]) -> None:
    for given in groups:
        if given.group >= len(job.state.groups):
            raise InvalidRequest(problem=f"job {job.name!r} has no group with index {given.group}")
        count = len(job.state.groups.layouts[given.group].parameters)
        for what, values in [("steps", given.steps), *((e.field, e.present) for e in given.entries)]:
            if len(values) != count:
                raise StructureMismatch(
                    what=f"{what} of group {given.group}", expected=f"{count} values", got=len(values)
                )
        for entry in given.entries:
            if entry.field not in job.state.groups.state_names:
                known = ", ".join(job.state.groups.state_names)
                raise UnknownField(job=job.name, field=entry.field[:200], fields=known)
            _check_kept(job, given.group, entry.field)
            _check_holders(job, given.group, entry)
            _check_shapes(job, given.group, entry)
        if any(steps >= MOST_STEPS for steps in given.steps):
            raise InvalidRequest(problem=f"steps of group {given.group} must be in [0, 2**62)")


def _check_kept(job: Job, group: int, field: str) -> None:
    """Raises `InvalidRequest` if the algorithm of a group has no such state field."""
    groups = job.state.groups
    fields = groups.state_fields[group]
    if field not in fields:
        of = f"group {groups.names[group]!r} of {groups.algorithms[group].name}"
        raise InvalidRequest(problem=f"{of} keeps no {field}; it keeps {', '.join(fields)}")


def _check_holders(job: Job, group: int, entry: StateEntries) -> None:
    """Raises `InvalidRequest` for state that a parameter cannot have because of its dtype."""
    groups = job.state.groups
    for parameter, present in zip(groups.layouts[group].parameters, entry.present, strict=True):
        if present and not has(groups.state_fields[group][entry.field], parameter.dtype):
            problem = f"parameter {parameter.name!r} of {parameter.dtype} has no {entry.field}"
            raise InvalidRequest(problem=problem)


def _check_shapes(job: Job, group: int, entry: StateEntries) -> None:
    """Raises `StructureMismatch`, `ShapeMismatch` or `DtypeMismatch` if an entry's shapes differ from the job's."""
    if not entry.shapes:
        return
    groups = job.state.groups
    layout, field = groups.layouts[group], groups.state_fields[group][entry.field]
    if len(entry.shapes) != len(layout.parameters):
        what, count = f"shapes of {entry.field} in group {group}", f"{len(layout.parameters)} of them"
        raise StructureMismatch(what=what, expected=count, got=len(entry.shapes))
    ours = shapes_of(field, layout)
    for parameter, present, theirs, expected in zip(layout.parameters, entry.present, entry.shapes, ours, strict=True):
        if not present and theirs.sizes == NOTHING:
            continue
        if theirs.sizes != expected.sizes:
            raise ShapeMismatch(
                what=entry.field, parameter=parameter.name, expected=expected.sizes, got=theirs.sizes[:MAX_DIMS]
            )
        # torch casts all state to the parameter's dtype on load, float32 state too, so that dtype is accepted.
        if theirs.dtype != expected.dtype and field.dtype is None:
            raise DtypeMismatch(what=entry.field, parameter=parameter.name, expected=expected.dtype, got=theirs.dtype)
