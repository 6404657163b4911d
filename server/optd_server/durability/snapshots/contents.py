"""Which tensors a state has, in which file each one is, and where in the state it belongs.

A large group has files of its own, so that it is not written again while it does not change. All small groups share
files. A file has the tensors of one kind: `weights` by the parameter's name, `state` by field and parameter, such as
`exp_avg/layer.weight`, `averages` by average and parameter, and `sums` of accumulated rounds by the parameter's name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optd_server.engine.state import JobState
from optd_server.optim.iterative import to_fields
from optd_server.store.extents import Extent
from optd_server.store.flat import Array, FlatBuffers

WEIGHTS, STATE, AVERAGES, SUMS = "weights", "state", "averages", "sums"
ROWS, SEARCH = "rows", "search"
SMALL = "small"
OWN_FILE_BYTES = 1 << 20
"""A group whose weights have at least as many bytes has files of its own."""

Tensors = dict[str, Array]


class Place:
    """A parameter of a job: where it lies in the flat arrays of its extent and slab."""

    __slots__ = ("extent", "group", "index", "member", "name", "shape", "slab", "slice")

    def __init__(
        self, group: int, member: int, name: str, shape: tuple[int, ...], extent: int, slab: int, index: int, start: int
    ) -> None:
        self.group, self.member, self.name, self.shape = group, member, name, shape
        self.extent, self.slab = extent, slab
        self.index = index
        """Its index in the slab."""
        self.slice = slice(start, start + int(np.prod(shape, dtype=np.int64)))


def places(extents: tuple[Extent, ...]) -> Iterator[Place]:
    """Yield every parameter, in the order of the groups."""
    for number, extent in enumerate(extents):
        for group, (layout, segments) in enumerate(zip(extent.layouts, extent.places, strict=True), extent.first_group):
            for segment, place in zip(layout.segments, segments, strict=True):
                starts = extent.slabs[place.slab].starts
                for index, member in enumerate(segment.members, place.first):
                    parameter = layout.parameters[member]
                    start = int(starts[index])
                    yield Place(group, member, parameter.name, parameter.shape, number, place.slab, index, start)


def units(extents: tuple[Extent, ...]) -> dict[int, str]:
    """Return, by group, the part of its files' names that tells which groups are in them."""
    found: dict[int, str] = {}
    for extent in extents:
        for group, layout in enumerate(extent.layouts, extent.first_group):
            size = sum(segment.count for segment in layout.segments) * 4
            found[group] = f"{group:05d}" if size >= OWN_FILE_BYTES else SMALL
    return found


def tensors_of(state: JobState) -> dict[str, Tensors]:
    """Return all tensors of a state by file, without the suffix. They are views of the state's memory."""
    files: dict[str, Tensors] = {}
    extents, unit = state.groups.extents, units(state.groups.extents)
    states = {(number, index): each for number, index, _, each in state.groups.slabs()}

    def put(kind: str, place: Place, name: str, array: Array) -> None:
        files.setdefault(f"{kind}-{unit[place.group]}", {})[name] = array

    accumulated = state.accumulation.count
    for place in places(extents):
        put(WEIGHTS, place, place.name, _view(state.weights.buffers, place))
        segment = states[place.extent, place.slab]
        for field in segment.state:
            if segment.started[field][place.index]:
                put(STATE, place, f"{field}/{place.name}", segment.of(field, place.index))
        for name, average in state.averages.kept.items():
            if average.updates:
                put(AVERAGES, place, f"{name}/{place.name}", _view(average.buffers, place))
        totals = state.accumulation.totals[place.extent : place.extent + 1] if accumulated else []
        if totals and totals[0][place.slab][place.index] > 0:
            put(SUMS, place, place.name, _view(state.accumulation.sums, place))
    if accumulated and state.accumulation.rows:
        rows: Tensors = {}
        for number, (each, _) in enumerate(state.accumulation.rows.values()):
            rows[f"{number}/ids"], rows[f"{number}/values"] = each.ids, each.values
        files[ROWS] = rows
    arrays, _ = search_fields(state)
    if arrays:
        files[SEARCH] = dict(arrays)
    return files


def search_fields(state: JobState) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Return the vectors and the texts of an unfinished step of an iterative algorithm; both empty if it has none."""
    if state.groups.iterative is None:
        return {}, {}
    return to_fields(state.search.state, state.groups.slab_state(0, 0))


def _view(buffers: FlatBuffers, place: Place) -> Array:
    view: Array = buffers.slabs[place.extent][place.slab][place.slice]
    return view.reshape(place.shape)


def view_of(buffers: FlatBuffers, place: Place) -> Any:
    """Return the flat elements of a parameter, to be written."""
    return buffers.slabs[place.extent][place.slab][place.slice]
