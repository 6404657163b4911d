"""Reduces the gradients of a round: checks them, adds them up, and divides the sums. Runs off the event loop.

If n of the pushes have a parameter, its result is ``(g_1 + g_2 + ... + g_n) * (1 / n)``, summed in the order of the
round and in the dtype of the data. DistributedDataParallel averages in the same way. If the pushes have different
weights, it is ``(w_1 g_1 + w_2 g_2 + ... + w_n g_n) * (1 / (w_1 + w_2 + ... + w_n))``. If the job's reduction is a sum,
it is ``w_1 g_1 + w_2 g_2 + ... + w_n g_n``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.engine.step.intake import Intake
from optd_server.engine.step.values import takes_values
from optd_server.optim.backends.base import Backend
from optd_server.optim.job_options import MEAN
from optd_server.optim.reduce import Contribution
from optd_server.optim.runs import BLOCK
from optd_server.store.clearing import Clearing
from optd_server.store.extents import Extent, Slab
from optd_server.store.flat import Array, FlatBuffers, FrameSink, Placed
from optd_server.store.gradients import Gradient
from optd_server.store.ledger import Mask, Presence, is_full, owner_of
from optd_server.store.rows import Rows
from optd_wire.errors import NonfiniteGradient
from optd_wire.frames import Frame

Indices = npt.NDArray[np.int64]


class Reducer:
    """Reduces gradients that are laid out in `extents`, with the kernels of `backend` on `threads` threads."""

    def __init__(self, extents: Sequence[Extent], backend: Backend, threads: int) -> None:
        self._extents = tuple(extents)
        self._backend = backend
        self._threads = threads
        self._cleared: Clearing | None = None

    @property
    def _clearing(self) -> Clearing:
        """The record of the ranges that are cleared for adding. A round without sums never creates it."""
        if self._cleared is None:
            self._cleared = Clearing(self._extents)
        return self._cleared

    def write_frames(self, sink: FrameSink, frames: Sequence[Frame], intake: Intake) -> None:
        """Write received frames; raise `NonfiniteGradient`, or what `FrameSink.place` raises."""
        for frame in frames:
            frame.check()
            self._write(Placed(frame, *sink.place(frame)), sink.buffers, intake, add=False)

    def add_frames(self, placed: Sequence[Placed], buffers: FlatBuffers, intake: Intake) -> None:
        """Add checked frames to the sums in `buffers`; raise `NonfiniteGradient`."""
        for each in placed:
            self._clearing.prepare(buffers, each.extent, each.slab, each.start, each.start + each.frame.count)
            self._write(each, buffers, intake, add=True)

    def _write(self, placed: Placed, buffers: FlatBuffers, intake: Intake, *, add: bool) -> None:
        frame = placed.frame
        target = buffers.slabs[placed.extent][placed.slab][placed.start : placed.start + frame.count]
        if not intake.plain:
            values = np.empty(frame.count, target.dtype) if add else target
            frame.decode_into(values)
            are_gradients = not takes_values(self._extents[placed.extent].slabs[placed.slab].kind)
            locate = partial(self._locate, frame.group, frame.offset)
            intake.take(values, locate, are_gradients=are_gradients)
            if add:
                self._backend.accumulate(target, values, add=True)
            return
        if frame.encoding.keeps(target.dtype):
            values = frame.values
            finite = self._backend.accumulate(target, values, add=add)
        else:
            # A few bytes may decode to very many numbers, so these are decoded in place if nothing is added.
            values = np.empty(frame.count, target.dtype) if add else target
            frame.decode_into(values)
            finite = add and self._backend.accumulate(target, values, add=True)
        if not finite:
            # A sum of finite numbers may overflow, as in torch. Only an entry of the frame is an error.
            found = self._backend.first_nonfinite(values, 1)
            if found is not None:
                raise self._nonfinite_in_group(frame.group, frame.offset + found, values[found])

    def add(self, gradient: Gradient, into: FlatBuffers, intake: Intake) -> None:
        """Add a gradient that lies in memory, without changing it; raise `NonfiniteGradient`."""
        for number, extent, index, slab, present in self._slabs(gradient):
            for start, stop in present_ranges(present, slab.starts, slab.sizes):
                values = gradient.slabs[number][index][start:stop]
                self._clearing.prepare(into, number, index, start, stop)
                if not intake.plain:
                    self._add_taken(values, into.slabs[number][index][start:stop], intake, extent, slab, start)
                    continue
                if not self._backend.accumulate(into.slabs[number][index][start:stop], values, add=True):
                    self._check_values(extent, slab, start, values)

    def _add_taken(self, values: Array, into: Array, intake: Intake, extent: Extent, slab: Slab, start: int) -> None:
        """Add values through copies that fit the cache, because the intake changes numbers in place."""
        for first in range(0, len(values), BLOCK):
            copied = values[first : first + BLOCK].copy()
            locate = partial(_locate_in_slab, extent, slab, start + first)
            intake.take(copied, locate, are_gradients=not takes_values(slab.kind))
            self._backend.accumulate(into[first : first + BLOCK], copied, add=True)

    def check(self, gradient: Gradient) -> None:
        """Raise `NonfiniteGradient` if a gradient in memory has a NaN or an infinity."""
        for number, extent, index, slab, present in self._slabs(gradient):
            for start, stop in present_ranges(present, slab.starts, slab.sizes):
                self._check_values(extent, slab, start, gradient.slabs[number][index][start:stop])

    def divide(self, sums: FlatBuffers, presences: Sequence[Presence], weights: Sequence[float], how: str) -> Presence:
        """Divide sums by the weights of the pushes that have each parameter; return the parameters of any push.

        Gradients stay sums unless `how` is "mean"; values become means in any case.
        """
        covered: Presence = []
        for number, extent in enumerate(self._extents):
            covered.append([])
            for index, slab in enumerate(extent.slabs):
                totals = np.zeros(len(slab.sizes))
                for presence, weight in zip(presences, weights, strict=True):
                    if number < len(presence):
                        totals += weight * presence[number][index]
                if how == MEAN or takes_values(slab.kind):
                    self.scale_inverse(sums.slabs[number][index], slab, totals)
                covered[-1].append(totals > 0)
        return covered

    def scale_inverse(self, elements: Array, slab: Slab, totals: npt.NDArray[np.float64]) -> None:
        """Divide the elements of each parameter of a slab by its total, unless that is 0 or 1."""
        for total in np.unique(totals[(totals != 0) & (totals != 1)]).tolist():
            for start, stop in present_ranges(totals == total, slab.starts, slab.sizes):
                self._backend.scale(elements[start:stop], 1 / total, self._threads)

    def scale_rows(self, rows: Rows, total: float) -> None:
        """Divide rows by the total of their weights."""
        if total != 1:
            self._backend.scale(rows.values.reshape(-1), 1 / total, self._threads)

    def elements(self, presence: Presence) -> int:
        """Return how many elements the present parameters have in total."""
        count = 0
        for extent, flags in zip(self._extents, presence, strict=False):
            for slab, present in zip(extent.slabs, flags, strict=True):
                count += slab.count if is_full(present) else int(np.dot(present, slab.sizes))
        return count

    def mean(self, gradients: Sequence[Gradient], into: FlatBuffers) -> tuple[Presence, bool]:
        """Write the mean of gradients that lie in memory, in one pass.

        Return the parameters that at least one of them has, and whether all numbers of the mean are finite.
        """
        covered: Presence = []
        all_finite = True
        for number, extent in enumerate(self._extents):
            covered.append([])
            for index, slab in enumerate(extent.slabs):
                contributions = [
                    Contribution(gradient.slabs[number][index], gradient.presence[number][index])
                    for gradient in gradients
                    if number < len(gradient.slabs)
                ]
                if not contributions:
                    covered[-1].append(np.zeros(len(slab.sizes), np.bool_))
                    continue
                out = into.slabs[number][index]
                mask, finite = self._backend.reduce_mean(out, contributions, slab.sizes, self._threads)
                all_finite &= finite
                covered[-1].append(mask)
        return covered, all_finite

    def _slabs(self, gradient: Gradient) -> list[tuple[int, Extent, int, Slab, Mask]]:
        return [
            (number, extent, index, slab, present)
            for number, (extent, flags, _) in enumerate(
                zip(self._extents, gradient.presence, gradient.slabs, strict=False)
            )
            for index, (slab, present) in enumerate(zip(extent.slabs, flags, strict=True))
        ]

    def _check_values(self, extent: Extent, slab: Slab, start: int, values: Array) -> None:
        found = self._backend.first_nonfinite(values, self._threads)
        if found is not None:
            parameter, place = owner_of(extent, slab, start + found)
            raise NonfiniteGradient(parameter=parameter.name, value=values[found], index=place)

    def _nonfinite_in_group(self, group: int, element: int, value: Any) -> NonfiniteGradient:
        name, index = self._locate(group, element, 0)
        return NonfiniteGradient(parameter=name, value=value, index=index)

    def _locate(self, group: int, offset: int, number: int) -> tuple[str, int]:
        """Return the parameter that holds an element of a group, and the element's index in it."""
        layouts = [layout for extent in self._extents for layout in extent.layouts]
        element = offset + number
        holder = next(p for p in layouts[group].parameters if p.offset <= element < p.offset + p.size)
        return holder.name, element - holder.offset


def _locate_in_slab(extent: Extent, slab: Slab, start: int, number: int) -> tuple[str, int]:
    parameter, place = owner_of(extent, slab, start + number)
    return parameter.name, place


def present_ranges(present: Mask, starts: Indices, sizes: Indices) -> list[tuple[int, int]]:
    """Return the element ranges of the present parameters, with adjacent ranges joined."""
    if is_full(present):
        start = int(starts[0]) if len(starts) else 0
        return [(start, start + int(sizes.sum()))]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], present, [False])).astype(np.int8)))
    firsts, lasts = edges[::2], edges[1::2] - 1
    return [(int(starts[first]), int(starts[last] + sizes[last])) for first, last in zip(firsts, lasts, strict=True)]
