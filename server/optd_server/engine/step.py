"""The arithmetic of one step: check the pushes, reduce a round, update weights and state. Runs off the loop."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.engine.groups import Groups
from optd_server.optim.backends.base import Backend
from optd_server.optim.reduce import Contribution
from optd_server.optim.step import apply
from optd_server.store.flat import FlatBuffers, parameter_at
from optd_server.store.gradients import GradientSlot
from optd_wire.errors import NonfiniteGradient
from optd_wire.layout import GroupLayout, Segment


def seal_and_check(slot: GradientSlot, kernels: Backend, threads: int) -> None:
    """Fixes which parameters a push has; raises `IncompleteParameter`, or `NonfiniteGradient` by default."""
    slot.seal()
    for layout, arrays, by_segment in zip(slot.buffers.layouts, slot.buffers.arrays, slot.presence, strict=True):
        for segment, array, present in zip(layout.segments, arrays, by_segment, strict=True):
            for start, stop in _present_ranges(layout, segment, present):
                found = kernels.first_nonfinite(array[start:stop], threads)
                if found is not None:
                    raise _nonfinite(layout, segment, start + found, array[start + found])


def _present_ranges(layout: GroupLayout, segment: Segment, present: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    if present.all():
        return [(0, segment.count)]
    members = [layout.parameters[member] for member in segment.members]
    return [
        (parameter.offset - segment.offset, parameter.offset - segment.offset + parameter.size)
        for parameter, there in zip(members, present, strict=True)
        if there
    ]


def _nonfinite(layout: GroupLayout, segment: Segment, place: int, value: Any) -> NonfiniteGradient:
    parameter = parameter_at(layout, segment, place + segment.offset)
    return NonfiniteGradient(parameter=parameter.name, value=value, index=place + segment.offset - parameter.offset)


def reduce_round(
    groups: Groups, pushes: Sequence[GradientSlot], into: GradientSlot, kernels: Backend, threads: int
) -> None:
    """Writes the mean over the pushes that have a gradient, per parameter, in the order given, into `into`."""
    into.presence = [[] for _ in groups.layouts]
    for group, index, _, state in groups.segments():
        contributions = [
            Contribution(push.buffers.arrays[group][index], push.presence[group][index]) for push in pushes
        ]
        mean = kernels.reduce_mean(into.buffers.arrays[group][index], contributions, state.sizes, threads)
        into.presence[group].append(mean.present)


def take_step(
    groups: Groups,
    gradient: GradientSlot,
    current: FlatBuffers,
    following: FlatBuffers,
    kernels: Backend,
    threads: int,
) -> None:
    """Writes the weights after the step into `following`, and updates the state in `groups`."""
    for group, index, _, state in groups.segments():
        apply(
            groups.algorithm,
            [groups.options[group].options],
            state,
            weights=current.arrays[group][index],
            gradient=gradient.buffers.arrays[group][index],
            out=following.arrays[group][index],
            present=gradient.presence[group][index],
            threads=threads,
            backend=kernels,
        )
