"""The state of one parameter, read and written without that of the job's other parameters."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from optd.params.flat_view import Array, FlatView
from optd.state.all_parameters import STEP, ParameterState, specs_of, state_dtypes
from optd.transport.numbers import Sink
from optd_wire.frames import Frame, GatheredFrame
from optd_wire.layout import lay_out
from optd_wire.values import GroupState, JobVersion, ParameterSpec, ReadStateResult, StateEntries, StateShape

T = TypeVar("T")

_NOTHING = StateShape((0,), "float32")


@dataclass(frozen=True, slots=True)
class StateIndex:
    """What state a job holds at one version, without the numbers: steps and entries by group and place."""

    version: JobVersion
    groups: tuple[GroupState, ...]

    def names(self, group: int, place: int) -> list[str]:
        """The entries of one parameter in torch's order, the step first; none before its first step."""
        found = self.groups[group]
        counted = [STEP] if found.steps[place] else []
        return counted + [entry.field for entry in found.entries if entry.present[place]]

    def single_numbers(self, groups: Collection[int]) -> set[str]:
        """The fields that are one number for each parameter of these groups that has them, whatever its shape."""
        wanted = [self.groups[index] for index in groups]
        shaped = {entry.field for group in wanted for entry in group.entries if entry.shapes}
        others = {
            entry.field
            for group in wanted
            for entry in group.entries
            for present, shape in zip(entry.present, entry.shapes, strict=False)
            if present and shape.sizes != ()
        }
        return shaped - others


class ParameterReader:
    """Takes a reading of some fields of one parameter, at `place` of a group of `parameters`."""

    def __init__(self, parameters: Sequence[ParameterSpec], place: int) -> None:
        self._parameters = parameters
        self._place = place

    def begin(self, result: ReadStateResult) -> Sink:
        """Makes arrays for the state that the result announces; returns the sink that fills them."""
        self.version = result.version
        """The version of the state."""
        (self._group,) = result.groups
        self._offsets: dict[str, int] = {}
        self._arrays: dict[str, Array] = {}
        for entry in self._group.entries:
            if entry.present[self._place]:
                layout = lay_out(specs_of(self._parameters, entry))
                own = layout.parameters[self._place]
                self._offsets[entry.field] = own.offset
                self._arrays[entry.field] = np.empty(own.shape, state_dtypes(entry)[own.dtype])
        return self._take

    def _take(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            array = self._arrays.get(frame.field)
            if array is not None:
                start = frame.offset - self._offsets[frame.field]
                array.reshape(-1)[start : start + frame.count] = frame.decoded(array.dtype)

    def state(self, fields: Collection[str]) -> ParameterState:
        """Those of `fields` that the parameter has, in torch's order."""
        counted: ParameterState = {STEP: self._group.steps[self._place]} if self._group.steps[self._place] else {}
        return counted | {name: array for name, array in self._arrays.items() if name in fields}


def changed_group(
    group: GroupState,
    place: int,
    state: Mapping[str, Array],
    gone: Collection[str],
    steps: int,
    shaped: Collection[str],
) -> GroupState:
    """The steps and entries of a group after one parameter gets the entries of `state` and loses those in `gone`.

    Fields in `shaped` have shapes of their own.
    """
    known = {entry.field: entry for entry in group.entries}
    nobody = (False,) * len(group.steps)
    entries = []
    for name in dict.fromkeys([*known, *state]):
        entry = known.get(name, StateEntries(name, nobody))
        if name in state:
            array = state[name]
            shapes = entry.shapes or (_NOTHING,) * len(group.steps)
            own = StateShape(array.shape, array.dtype.name)
            entry = StateEntries(name, _put(entry.present, place, True), _put(shapes, place, own))
            entry = entry if name in shaped else replace(entry, shapes=())
        elif name in gone:
            entry = replace(entry, present=_put(entry.present, place, False))
        entries.append(entry)
    return GroupState(group.group, _put(group.steps, place, steps), tuple(entries))


def frames_of(
    group: GroupState, parameters: Sequence[ParameterSpec], place: int, state: Mapping[str, Array], batch_bytes: int
) -> Iterator[list[GatheredFrame]]:
    """The frames of one parameter's state, in lists that suit one message each; `group` is a `changed_group`."""
    for entry in group.entries:
        if entry.field in state:
            view = FlatView([specs_of(parameters, entry)], first_group=group.group, batch_bytes=batch_bytes)
            row = [state[entry.field] if member == place else None for member in range(len(parameters))]
            yield from view.batches([row], entry.field)


def _put(values: Sequence[T], place: int, value: T) -> tuple[T, ...]:
    return (*values[:place], value, *values[place + 1 :])
