"""A state without its tensors, as the message that a manifest holds, and back to a state with its tensors."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from optd_server.durability.problems import Damage
from optd_server.durability.snapshots.contents import (
    AVERAGES,
    ROWS,
    SEARCH,
    STATE,
    SUMS,
    WEIGHTS,
    Place,
    places,
    search_fields,
    units,
    view_of,
)
from optd_server.durability.snapshots.members import members_from, stored_members
from optd_server.durability.snapshots.tensors import TensorFile
from optd_server.durability.v1 import event_pb2
from optd_server.durability.v1 import snapshot_pb2 as pb
from optd_server.engine.options.groups import GroupKept, Groups, LastChange
from optd_server.engine.options.history import KEPT, OptionHistory
from optd_server.engine.options.resolution import find_algorithm
from optd_server.engine.state import JobState
from optd_server.engine.step.accumulation import Accumulation
from optd_server.engine.step.averages import Average, Averages
from optd_server.engine.step.staleness import FragmentSteps
from optd_server.optim.iterative import Searches, from_fields
from optd_server.store.extents import in_compute_dtype
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.rows import Rows, place_of
from optd_server.store.versions import WeightSet
from optd_wire.dtypes import COMPUTED, DTYPES, dtype_from_enum, dtype_to_enum
from optd_wire.layout import lay_out
from optd_wire.messages import (
    from_message,
    options_from_message,
    options_to_message,
    to_message,
)
from optd_wire.policy_messages import policy_from_message
from optd_wire.values import (
    AverageInfo,
    GradientSummary,
    GroupOptions,
    GroupSpec,
    JobOptions,
    JobSpec,
    OptionChange,
    ParameterSpec,
)

Files = Mapping[str, TensorFile]
"""The open files of a snapshot, by name without the suffix."""
Read: TypeAlias = Callable[[str, Place, str, Array], None]
"""Reads a tensor to an array: the kind of its file, its parameter, its name, and the array."""


MOST_STEPS = 1 << 62


# To a message


def manifest_of(state: JobState, event: int) -> pb.Snapshot:
    """Return everything of a state but its tensors. `event` is the number of the last event that it contains."""
    return pb.Snapshot(
        name=state.name,
        id=state.id,
        created_wall=state.created_wall,
        created_with=state.created_with,
        ephemeral=state.ephemeral,
        policy=to_message(state.policy),
        version=state.version,
        revision=state.revision,
        event=event,
        stepped_wall=state.stepped_wall,
        written_revision=state.written_revision,
        applied_pushes=state.applied_pushes,
        algorithm=state.groups.algorithm.name,
        defaults=options_to_message(state.groups.defaults),
        groups=_groups(state),
        options=to_message(state.options),
        history=_history(state.history),
        gradients=to_message(state.gradients),
        members=stored_members(state.members),
        averages=map(to_message, state.averages.infos()),
        accumulation=_accumulation(state),
        search=search_fields(state)[1],
        first_policy=to_message(state.first_policy) if state.first_policy != state.policy else None,
        fragments={
            fragment: pb.FragmentSteps(versions=versions) for fragment, versions in state.fragments.versions.items()
        },
    )


def _groups(state: JobState) -> list[pb.StoredGroup]:
    groups, segments = state.groups, {(number, index): each for number, index, _, each in state.groups.slabs()}
    stored = []
    for kept in groups.kept():
        group = pb.StoredGroup(
            options=to_message(kept.options),
            parameters=[to_message(ParameterSpec(p.name, p.shape, p.dtype)) for p in kept.layout.parameters],
            extent=kept.extent,
            steps=[0] * len(kept.layout.parameters),
        )
        for option, change in kept.last_changed.items():
            group.last_changed[option].revision = change.revision
            group.last_changed[option].version = change.version
        stored.append(group)
    started: list[dict[tuple[str, str], list[int]]] = [{} for _ in stored]
    for place in places(groups.extents):
        segment, dtype = segments[place.extent, place.slab], groups.extents[place.extent].slabs[place.slab].dtype
        stored[place.group].steps[place.member] = int(segment.steps[place.index])
        for name in segment.state:
            members = started[place.group].setdefault((dtype, name), [])
            if segment.started[name][place.index]:
                members.append(place.member)
    for group, fields in zip(stored, started, strict=True):
        for (dtype, name), members in fields.items():
            group.fields.add(name=name, dtype=dtype_to_enum(dtype), started=sorted(members))
    return stored


def _history(history: OptionHistory) -> pb.StoredHistory:
    def numbered(entry: tuple[int, OptionChange]) -> pb.NumberedChange:
        return pb.NumberedChange(number=entry[0], change=to_message(entry[1]))

    return pb.StoredHistory(
        recent=map(numbered, history.recent), last=map(numbered, history.last.values()), counts=history.counts
    )


def _accumulation(state: JobState) -> pb.StoredAccumulation:
    accumulation = state.accumulation
    stored = pb.StoredAccumulation(count=accumulation.count)
    if not accumulation.count:
        return stored
    totals = [[0.0] * len(layout.parameters) for layout in state.groups.layouts]
    for place in places(state.groups.extents[: len(accumulation.totals)]):
        totals[place.group][place.member] = float(accumulation.totals[place.extent][place.slab][place.index])
    stored.totals.extend(event_pb2.Weights(weights=each) for each in totals)
    for place_of_rows, (rows, weight) in accumulation.rows.items():
        stored.rows.add(
            group=place_of_rows.group,
            parameter=place_of_rows.member,
            sparse_dims=rows.place.sparse_dims,
            weight=weight,
        )
    return stored


# To a state


def spec_of(stored: pb.Snapshot, name: str) -> JobSpec:
    """Return what a job of this name would be registered as, to be what a manifest describes; raise ValueError."""
    groups = []
    for group in stored.groups:
        options = from_message(group.options, GroupOptions)
        parameters = tuple(from_message(each, ParameterSpec) for each in group.parameters)
        groups.append(GroupSpec(options.group, options.options, parameters, options.algorithm))
    return JobSpec(
        name=name,
        algorithm=stored.algorithm,
        defaults=options_from_message(stored.defaults),
        groups=tuple(groups),
        policy=policy_from_message(stored.policy),
        options=from_message(stored.options, JobOptions).options,
    )


def state_of(stored: pb.Snapshot, files: Files) -> JobState:
    """Return the state that a manifest and its files hold. Blocks while the files are read.

    Raise `Damage` for a file that does not fit, and ValueError for a manifest that makes no state.
    """
    groups = _read_groups(stored)
    all_places = list(places(groups.extents))
    unit = units(groups.extents)

    def read(kind: str, place: Place, name: str, out: Array) -> None:
        files[f"{kind}-{unit[place.group]}"].read_into(name, out)

    _check_shapes(all_places, unit, files)
    weights = FlatBuffers(groups.extents)
    for place in all_places:
        read(WEIGHTS, place, place.name, view_of(weights, place))
    _read_states(stored, groups, all_places, read)
    return JobState(
        name=stored.name,
        id=stored.id,
        created_wall=stored.created_wall,
        created_with=stored.created_with,
        ephemeral=stored.ephemeral,
        policy=policy_from_message(stored.policy),
        first_policy=policy_from_message(stored.first_policy if stored.HasField("first_policy") else stored.policy),
        version=stored.version,
        revision=stored.revision,
        stepped_wall=stored.stepped_wall,
        written_revision=stored.written_revision,
        applied_pushes=stored.applied_pushes,
        groups=groups,
        weights=WeightSet.holding(weights),
        averages=_read_averages(stored, groups, all_places, read),
        accumulation=_read_accumulation(stored, groups, all_places, read, files),
        search=_read_search(stored, groups, files),
        options=from_message(stored.options, JobOptions),
        history=_read_history(stored.history),
        gradients=from_message(stored.gradients, GradientSummary),
        members=members_from(stored.members),
        fragments=FragmentSteps(
            {number: list(stored.fragments[number].versions) for number in sorted(stored.fragments)}
        ),
    )


def _check_shapes(all_places: list[Place], unit: Mapping[int, str], files: Files) -> None:
    """Raise `Damage` unless each parameter has its weights: no memory is taken for numbers that are not there."""
    for place in all_places:
        file = files[f"{WEIGHTS}-{unit[place.group]}"]
        found = file.entry(place.name).shape
        if found != place.shape:
            raise Damage(file.path, 8, f"tensor {place.name!r} is of shape {found}, where {place.shape} belongs")


def _read_groups(stored: pb.Snapshot) -> Groups:
    kept = []
    for group in stored.groups:
        specs = [from_message(each, ParameterSpec) for each in group.parameters]
        options = from_message(group.options, GroupOptions)
        changed = {name: LastChange(each.revision, each.version) for name, each in group.last_changed.items()}
        kept.append(GroupKept(options.algorithm, lay_out(specs), options, changed, group.extent))
    return Groups.restored(find_algorithm(stored.algorithm), options_from_message(stored.defaults), kept)


def _read_states(stored: pb.Snapshot, groups: Groups, all_places: list[Place], read: Read) -> None:
    started: dict[tuple[int, str], dict[str, frozenset[int]]] = {}
    for number, group in enumerate(stored.groups):
        _check_counts(group, len(groups.layouts[number].parameters))
        for field in group.fields:
            own = started.setdefault((number, dtype_from_enum(field.dtype)), {})
            own[field.name] = frozenset(field.started)
    for extent, index, slab, segment in tuple(groups.slabs()):
        names = dict.fromkeys(name for group in slab.groups for name in started.get((group, slab.dtype), {}))
        fields = groups.state_fields[slab.groups[0]]
        groups.put_state(
            extent,
            index,
            steps=np.zeros(len(slab.sizes), np.int64),
            state={name: segment.prepare(fields[name]) for name in names},
            started={name: np.zeros(len(slab.sizes), np.bool_) for name in names},
        )
    segments = {(number, index): (slab, each) for number, index, slab, each in groups.slabs()}
    for place in all_places:
        slab, segment = segments[place.extent, place.slab]
        segment.steps[place.index] = stored.groups[place.group].steps[place.member]
        for name, members in started.get((place.group, slab.dtype), {}).items():
            if place.member in members:
                segment.started[name][place.index] = True
                array = segment.state[name][segment.layout_of(name).elements(place.index, place.index + 1)]
                read(STATE, place, f"{name}/{place.name}", array)


def _check_counts(group: pb.StoredGroup, parameters: int) -> None:
    """Raise ValueError unless the step counts and the indices of parameters are such."""
    if len(group.steps) != parameters or not all(0 <= steps < MOST_STEPS for steps in group.steps):
        raise ValueError(f"group {group.options.group!r} needs {parameters} step counts in [0, 2**62)")
    if any(member >= parameters for field in group.fields for member in field.started):
        raise ValueError(f"group {group.options.group!r} has state of a parameter that it lacks")


def _read_averages(stored: pb.Snapshot, groups: Groups, all_places: list[Place], read: Read) -> Averages:
    averages = Averages()
    for message in stored.averages:
        info = from_message(message, AverageInfo)
        average = Average(info.updates)
        if info.updates:
            average.buffers.extend(groups.extents)
            for place in all_places:
                read(AVERAGES, place, f"{info.name}/{place.name}", view_of(average.buffers, place))
        averages.kept[info.name] = average
    return averages


def _read_accumulation(
    stored: pb.Snapshot, groups: Groups, all_places: list[Place], read: Read, files: Files
) -> Accumulation:
    accumulation = Accumulation(stored.accumulation.count)
    if not accumulation.count:
        return accumulation
    accumulation.sums = FlatBuffers(in_compute_dtype(groups.extents))
    accumulation.totals = [[np.zeros(len(slab.sizes)) for slab in each.slabs] for each in groups.extents]
    for place in all_places:
        total = stored.accumulation.totals[place.group].weights[place.member]
        if total > 0:
            accumulation.totals[place.extent][place.slab][place.index] = total
            read(SUMS, place, place.name, view_of(accumulation.sums, place))
    for number, each in enumerate(stored.accumulation.rows):
        place_of_rows = place_of(groups.extents, each.group, each.parameter)
        own = place_of_rows.with_dims(max(1, each.sparse_dims))
        rows = Rows(own, files[ROWS].read(f"{number}/ids"), files[ROWS].read(f"{number}/values"))
        _check_rows(rows)
        accumulation.rows[place_of_rows.whole] = rows, each.weight
    return accumulation


def _check_rows(rows: Rows) -> None:
    """Raise ValueError unless rows are some of their parameter's, in ascending order."""
    place, ids, values = rows.place, rows.ids, rows.values
    if ids.ndim != 1 or ids.dtype != np.int64 or np.any(np.diff(ids) <= 0):
        raise ValueError(f"rows of parameter {place.name!r} need ascending ids of int64")
    if ids.size and not 0 <= ids[0] <= ids[-1] < place.rows:
        raise ValueError(f"ids of rows of parameter {place.name!r} must be in [0, {place.rows})")
    if values.shape != (ids.size, place.columns) or values.dtype != DTYPES[COMPUTED[place.dtype]]:
        raise ValueError(f"rows of parameter {place.name!r} are {values.dtype} of shape {values.shape}")


def _read_search(stored: pb.Snapshot, groups: Groups, files: Files) -> Searches:
    if groups.iterative is None or not stored.search:
        return Searches()
    file = files.get(SEARCH)
    arrays = {} if file is None else {name: file.read(name) for name in file.entries}
    return Searches(from_fields(arrays, dict(stored.search), groups.iterative, groups.slab_state(0, 0)))


def _read_history(stored: pb.StoredHistory) -> OptionHistory:
    recent = [(each.number, from_message(each.change, OptionChange)) for each in stored.recent]
    last = [(each.number, from_message(each.change, OptionChange)) for each in stored.last]
    return OptionHistory(
        deque(recent, maxlen=KEPT),
        {(change.group, change.option): (number, change) for number, change in last},
        Counter(dict(stored.counts)),
    )
