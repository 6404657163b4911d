"""Random gradients, whole and in rows, and how they travel."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tests.server.engine.folding import specs
from tests.server.engine.folding.specs import Rng, chance, one

from optd_server.engine.job import Job
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.store.extents import Extent
from optd_server.store.flat import FlatBuffers
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.encodings.registry import exact_for
from optd_wire.errors import RoundBroken
from optd_wire.frames import Frame, Received
from optd_wire.layout import lay_out
from optd_wire.row_frames import RowFrame
from optd_wire.values import FlatRange, GroupSpec, SharedGradient


@dataclass
class Gradient:
    """What a worker has worked out."""

    frames: list[Frame] = field(default_factory=list)
    rows: list[RowFrame] = field(default_factory=list)
    loss: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Payload:
    """How a gradient travels."""

    frames: Sequence[Received] = ()
    pieces: int = 1
    breaks: bool = False
    """Whether only a part arrives."""
    shared: bool = False

    def upload(self) -> "Sending":
        return Sending(self)


def received(frames: Sequence[Received], *, pieces: int = 1, breaks: bool = False) -> Payload:
    return Payload(tuple(frames), pieces, breaks)


class Sending:
    """A payload on its way, once."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        frames, pieces = self._payload.frames, self._payload.pieces
        for piece in range(pieces):
            if self._payload.breaks and piece == pieces - 1:
                raise RoundBroken(job="job", why="the connection is gone")
            await write(frames[len(frames) * piece // pieces : len(frames) * (piece + 1) // pieces])

    def park(self) -> None:
        pass


def gradient(rng: Rng, job: Job, groups: Sequence[GroupSpec], *, calm: bool) -> Gradient:
    """A gradient of some parameters. If `calm`, that of a bowl around 0, with its loss."""
    made = Gradient()
    iterative = job.state.groups.iterative is not None
    sparse, spoilt = chance(rng, 0.3), not calm and chance(rng, 0.2)
    made.scale = one(rng, (8.0, 1.0, 0.25)) if chance(rng, 0.2) else None
    loss, absent = 0.0, 0.0 if iterative and chance(rng, 0.9) else 0.25
    for index, group in enumerate(groups):
        algorithm = ALGORITHMS[group.algorithm or job.state.groups.algorithm.name]
        rule = algorithm.rows
        offsets = [parameter.offset for parameter in lay_out(group.parameters).parameters]
        for place in np.argsort(offsets, kind="stable").tolist():
            parameter = group.parameters[place]
            only = rule is not None and rule.only and not chance(rng, 0.02)
            if not parameter.size or chance(rng, absent) or (only and not parameter.shape):
                continue
            values = specs.numbers(rng, parameter, computed=True)
            if calm:
                values = _current(job, index, place).astype(DTYPES[COMPUTED[parameter.dtype]])
                values = values.reshape(parameter.shape) * values.dtype.type(0.5)
                with np.errstate(all="ignore"):
                    loss += float(np.sum(np.square(values, dtype=np.float64)))
            if spoilt and chance(rng, 0.5):
                values.reshape(-1)[int(rng.integers(values.size))] = one(rng, (np.nan, np.inf, -np.inf))
            if only or (rule is not None and sparse and values.ndim):
                made.rows.append(_rows(rng, index, place, values))
            else:
                made.frames.append(Frame.of(index, offsets[place], np.ascontiguousarray(values).reshape(-1)))
    if iterative:
        made.loss = loss * (made.scale or 1.0)
    return made


def _current(job: Job, group: int, place: int) -> np.ndarray[Any, Any]:
    layout = job.state.groups.layouts[group]
    for segment, array in zip(layout.segments, job.state.weights.buffers.arrays[group], strict=True):
        if place in segment.members:
            parameter = layout.parameters[place]
            start = parameter.offset - segment.offset
            return array[start : start + parameter.size]
    raise AssertionError("a parameter lies in a segment")


def _rows(rng: Rng, group: int, place: int, values: np.ndarray[Any, Any]) -> RowFrame:
    dims = int(rng.integers(1, values.ndim + 1))
    table = values.reshape(int(np.prod(values.shape[:dims])), -1)
    ids = rng.integers(0, len(table), min(int(rng.integers(0, 4)), len(table)))  # some may come twice
    chosen = np.ascontiguousarray(table[ids]).reshape(-1)
    return RowFrame(group, place, len(ids), exact_for(chosen.dtype), ids.astype("<u8"), chosen, dims)


# In memory that a worker shares


def shared_ranges(extents: Sequence[Extent], pushed: Gradient) -> SharedGradient:
    """The ranges that a gradient has in groups that there is room for."""
    covered = sum(len(extent.layouts) for extent in extents)
    ranges = [FlatRange(each.group, each.offset, each.count) for each in pushed.frames if each.group < covered]
    return SharedGradient(False, tuple(ranges))


def share_out(buffers: FlatBuffers, pushed: Gradient) -> None:
    """Writes a gradient there."""
    for frame in pushed.frames:
        for number, extent in enumerate(buffers.extents):
            local = frame.group - extent.first_group
            if not 0 <= local < len(extent.layouts):
                continue
            for segment, place in zip(extent.layouts[local].segments, extent.places[local], strict=True):
                if segment.offset <= frame.offset < segment.offset + segment.count:
                    start = place.start + frame.offset - segment.offset
                    buffers.slabs[number][place.slab][start : start + frame.count] = frame.values
