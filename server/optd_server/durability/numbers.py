"""Turns the numbers of an event into frames, and back.

Arrays lie by extent and slab, but frames address groups and their flat buffers. So a server may lay out groups in
another way than the server that wrote the event.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from optd_server.engine.step.reduction import present_ranges
from optd_server.store.extents import Extent, in_compute_dtype
from optd_server.store.flat import Array, FlatBuffers, FrameSink
from optd_server.store.gradients import Gradient, Totals
from optd_server.store.ledger import Presence
from optd_server.store.rows import Rows, place_of
from optd_wire.encodings.registry import BY_NUMBER, exact_for
from optd_wire.frames import Frame
from optd_wire.row_frames import RowFrame, ids_of
from optd_wire.v1 import tensor_pb2
from optd_wire.values import GRADIENT


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment of a group, and its place in a slab: its elements begin at `start`, its parameters are `parameters`."""

    group: int
    offset: int
    count: int
    members: tuple[int, ...]
    extent: int
    slab: int
    start: int
    parameters: slice


def _parts(extents: Iterable[Extent]) -> Iterator[_Part]:
    for number, extent in enumerate(extents):
        for group, (layout, places) in enumerate(zip(extent.layouts, extent.places, strict=True), extent.first_group):
            for segment, place in zip(layout.segments, places, strict=True):
                parameters = slice(place.first, place.first + len(segment.members))
                members = tuple(segment.members)
                yield _Part(group, segment.offset, segment.count, members, number, place.slab, place.start, parameters)


def written(field: str, buffers: FlatBuffers, ranges: Iterable[tuple[int, int, int, int]]) -> list[Frame]:
    """Returns frames of the written ranges of a field, each given as extent, slab, first element and exclusive end.

    The frames are sorted by group and offset, so they do not depend on the extents of the groups.
    """
    parts, found = list(_parts(buffers.extents)), []
    for extent, slab, start, stop in ranges:
        for part in parts:
            low, high = max(start, part.start), min(stop, part.start + part.count)
            if (part.extent, part.slab) == (extent, slab) and low < high:
                array = buffers.slabs[extent][slab][low:high]
                found.append(Frame.of(part.group, part.offset + low - part.start, array, field))
    return sorted(found, key=lambda frame: (frame.group, frame.offset))


def everything(field: str, buffers: FlatBuffers) -> Iterator[Frame]:
    """Yields a frame for each segment of flat buffers."""
    for part in _parts(buffers.extents):
        array = buffers.slabs[part.extent][part.slab][part.start : part.start + part.count]
        yield Frame.of(part.group, part.offset, array, field)


def gradient_frames(gradient: Gradient, extents: Sequence[Extent]) -> Iterator[Frame]:
    """Yields frames of the elements that a gradient has."""
    for part in _parts(extents):
        if part.extent >= len(gradient.slabs):
            continue
        slab = extents[part.extent].slabs[part.slab]
        present = gradient.presence[part.extent][part.slab][part.parameters]
        for low, high in present_ranges(present, slab.starts[part.parameters], slab.sizes[part.parameters]):
            array = gradient.slabs[part.extent][part.slab][low:high]
            yield Frame.of(part.group, part.offset + low - part.start, array, GRADIENT)


def row_frame(rows: Rows) -> RowFrame:
    """Returns a frame of rows of a gradient."""
    values = np.ascontiguousarray(rows.values).reshape(-1)
    place, ids = rows.place, rows.ids.astype(np.uint64)
    payload = values.view(np.uint8).data
    return RowFrame(place.group, place.member, ids.size, exact_for(values.dtype), ids, payload, place.sparse_dims)


def rows_of(extents: tuple[Extent, ...], frame: tensor_pb2.RowFrame) -> Rows:
    """Returns a copy of the rows in a frame."""
    place = place_of(extents, frame.group, frame.parameter).with_dims(max(1, frame.sparse_dims))
    dtype = BY_NUMBER[frame.encoding].dtype
    values = np.frombuffer(frame.payload, dtype).reshape(frame.count, place.columns).copy()
    return Rows(place, ids_of(frame.ids).astype(np.int64), values)


def filled(buffers: FlatBuffers, field: str, groups: Sequence[str], frames: Iterable[Frame]) -> FlatBuffers:
    """Writes frames to flat buffers, and returns the buffers."""
    return sink(buffers, field, groups, frames).buffers


def sink(buffers: FlatBuffers, field: str, groups: Sequence[str], frames: Iterable[Frame]) -> FrameSink:
    """Writes frames to flat buffers, and returns the sink, whose ledger tells which elements were written."""
    first = buffers.extents[0].first_group if buffers.extents else 0
    found = FrameSink(buffers, field, groups, first_group=first)
    found.write_all(frames)
    return found


def gradient_of(
    extents: tuple[Extent, ...],
    groups: Sequence[str],
    present: Sequence[bytes],
    frames: Iterable[Frame],
    rows: Iterable[tensor_pb2.RowFrame],
) -> Gradient:
    """Returns the gradient in frames. `present` has the flags of each group, as `packed` returns them."""
    buffers = filled(FlatBuffers(in_compute_dtype(extents)), GRADIENT, groups, frames)
    presence: Presence = [[np.zeros(len(slab.sizes), np.bool_) for slab in each.slabs] for each in extents]
    for part in _parts(extents):
        if part.group < len(present):
            flags = np.unpackbits(np.frombuffer(present[part.group], np.uint8)).astype(np.bool_)
            presence[part.extent][part.slab][part.parameters] = flags[list(part.members)]
    return Gradient(buffers.slabs, presence, tuple(rows_of(extents, each) for each in rows))


def packed(presence: Presence, extents: Sequence[Extent]) -> list[bytes]:
    """Returns, by group, one bit for each parameter in the group's order: whether the parameter is present."""
    return [np.packbits(flags > 0).tobytes() for flags in _by_group(presence, extents)]


def weights_by_group(totals: Totals, extents: Sequence[Extent]) -> list[list[float]]:
    """Returns, by group, the weight of each parameter in the group's order."""
    return [weights.tolist() for weights in _by_group(totals, extents)]


def _by_group(given: Sequence[Sequence[Array]], extents: Sequence[Extent]) -> list[Array]:
    counts = [len(layout.parameters) for extent in extents for layout in extent.layouts]
    found = [np.zeros(count, np.float64) for count in counts]
    for part in _parts(extents):
        if part.extent < len(given):
            found[part.group][list(part.members)] = given[part.extent][part.slab][part.parameters]
    return found


def totals_of(weights: Sequence[Sequence[float]], extents: Sequence[Extent]) -> Totals:
    """Returns the weights by extent and slab. The inverse of `weights_by_group`."""
    totals: Totals = [[np.zeros(len(slab.sizes)) for slab in each.slabs] for each in extents]
    for part in _parts(extents):
        if part.group < len(weights):
            own = np.asarray(weights[part.group], np.float64)
            totals[part.extent][part.slab][part.parameters] = own[list(part.members)]
    return totals


def frame_of(message: tensor_pb2.Frame) -> Frame:
    """Returns the frame in a plain message."""
    encoding = BY_NUMBER[message.encoding]
    return Frame(message.group, message.offset, message.count, encoding, memoryview(message.payload), message.field)
