"""Replaces a job's weights, optimizer state and averages by what a worker has written."""

from collections.abc import Sequence

import numpy as np

from optd_server.engine.events import FieldWritten, StateReplaced
from optd_server.engine.options.fields import has
from optd_server.engine.options.groups import Groups
from optd_server.engine.state import JobState
from optd_server.optim import masters
from optd_server.optim.algorithm import MASTER_WEIGHTS
from optd_server.store.flat import Array, FlatBuffers
from optd_wire.layout import GroupLayout
from optd_wire.values import WEIGHTS, GroupState


def replace_state(state: JobState, event: StateReplaced, following: FlatBuffers) -> None:
    """Writes the weights after the event to `following`, and everything else into the state itself."""
    groups = state.groups
    if event.groups:
        state.search.end()
    if any(each.field == WEIGHTS for each in event.fields):
        state.search.note_written_weights()
    for given in event.groups:
        _put_group(groups, given)
    for target, source in zip(following.all_slabs(), state.weights.buffers.all_slabs(), strict=True):
        target[:] = source
    averages = {info.name: info.updates for info in event.averages}
    written = {each.field: each for each in event.fields}
    for name, updates in averages.items():
        numbers = written[name].buffers if name in written else FlatBuffers(())
        state.averages.find(name, state.name).restore(updates, numbers, following)
    for each in event.fields:
        if each.field not in averages:
            _put_field(groups, each, following)
    for extent, slab, _, segment in groups.slabs():
        if MASTER_WEIGHTS.name in segment.state:
            # A worker may write weights without master weights, or the other way round; the weights win.
            masters.settle(segment.state[MASTER_WEIGHTS.name], following.slabs[extent][slab])


def _put_group(groups: Groups, given: GroupState) -> None:
    layout, fields = groups.layouts[given.group], groups.state_fields[given.group]
    for index, segment in enumerate(layout.segments):
        extent, place = groups.place(given.group, index)
        whole = groups.slab_state(extent, place.slab)
        present = {entry.field: entry.present for entry in given.entries}
        for name in present:
            if whole.has(fields[name]):
                whole.allocate(fields[name])
        state = whole.part(place.rank)
        members = list(segment.members)
        state.steps[:] = [given.steps[member] for member in members]
        for field, array in state.state.items():
            started = state.started[field]
            started[:] = [present[field][member] for member in members] if field in present else False
            # Algorithms rely on zeros for a parameter that has no state yet.
            array[np.repeat(~started, state.sizes_of(field))] = 0


def _put_field(groups: Groups, written: FieldWritten, following: FlatBuffers) -> None:
    name = written.field
    if written.layouts is not None:
        _put_shaped(groups, written)
        return
    for extent, slab, start, stop in written.ranges:
        if name == WEIGHTS:
            target = following.slabs[extent][slab]
        else:
            field = groups.state_fields[groups.extents[extent].slabs[slab].groups[0]][name]
            state = groups.slab_state(extent, slab)
            if not state.has(field):
                continue
            target = state.allocate(field)
        target[start:stop] = written.buffers.slabs[extent][slab][start:stop]


def _put_shaped(groups: Groups, written: FieldWritten) -> None:
    """Copies a field whose numbers lie in flat buffers of their own layout."""
    assert written.layouts is not None
    name, whole = written.field, set(written.parameters)
    for group, given in enumerate(written.layouts):
        if name not in groups.state_fields[group]:
            continue
        field = groups.state_fields[group][name]
        numbers = _by_member(given, written.buffers.arrays[group])
        for index, segment in enumerate(groups.layouts[group].segments):
            state = groups.state(group, index)
            for place, member in enumerate(segment.members if has(field, segment.dtype) else ()):
                if (group, member) in whole and numbers[member].size:
                    state.allocate(field)
                    state.of(name, place).reshape(-1)[:] = numbers[member]


def _by_member(layout: GroupLayout, arrays: Sequence[Array]) -> dict[int, Array]:
    """Returns the numbers of each parameter of a group, from flat buffers of this layout."""
    return {
        member: array[layout.parameters[member].offset - segment.offset :][: layout.parameters[member].size]
        for array, segment in zip(arrays, layout.segments, strict=True)
        for member in segment.members
    }
