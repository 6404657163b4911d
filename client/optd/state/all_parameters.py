"""The state of all parameters of a job: dicts of arrays here, frames on the wire."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optd.params.flat_view import Array, FlatView, empty_arrays
from optd.transport.numbers import Sink
from optd_wire import values
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, GatheredFrame
from optd_wire.values import GroupState, ParameterSpec, ReadStateResult, StateEntries, StateShape

ParameterState = dict[str, Any]
"""Arrays by torch's names, and "step", a count; empty before a parameter's first step."""
STEP = values.STEP
MOST_STEPS = 1 << 62
_NOTHING = (0,)
_COMPUTED = {name: DTYPES[computed] for name, computed in COMPUTED.items()}

Groups = Sequence[Sequence[ParameterSpec]]


class StateReader:
    """Takes the frames of a `read_state` of groups with these parameters."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._fields: dict[str, tuple[FlatView, list[list[Array]]]] = {}

    def begin(self, result: ReadStateResult) -> Sink:
        """Makes arrays for the state that the result announces; returns the sink that fills them."""
        # Groups that other workers have added are ignored.
        self._result = result.groups[: len(self._groups)]
        self._fields.clear()
        for field in dict.fromkeys(entry.field for group in self._result for entry in group.entries):
            entries = [_entries(group, field) for group in self._result]
            specs = [specs_of(*each) for each in zip(self._groups, entries, strict=False)]
            # Groups of different algorithms may have entries of one name, with shapes of their own in one group only.
            arrays = [empty_arrays([own], state_dtypes(its))[0] for own, its in zip(specs, entries, strict=False)]
            self._fields[field] = FlatView(specs), arrays
        return self._take

    def _take(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            view, arrays = self._fields[frame.field]
            view.write((frame,), arrays)

    def states(self) -> list[list[ParameterState]]:
        """The state of each parameter by group and place."""
        return [[self._state(group, place) for place in range(len(group.steps))] for group in self._result]

    def _state(self, group: GroupState, place: int) -> ParameterState:
        """In torch's order: "step" first."""
        counted: ParameterState = {STEP: group.steps[place]} if group.steps[place] else {}
        kept = {
            entry.field: self._fields[entry.field][1][group.group][place]
            for entry in group.entries
            if entry.present[place]
        }
        return counted | kept


class StateWriter:
    """Yields the frames of states; `names` and `states` are by group and place, from the job's group `first` on."""

    def __init__(
        self, names: Sequence[Sequence[str]], states: Sequence[Sequence[ParameterState]], first: int = 0
    ) -> None:
        self._first = first
        fields = sorted({name for row in states for state in row for name in state} - {STEP})
        self._rows = {field: [[state.get(field) for state in row] for row in states] for field in fields}
        self._specs = {
            field: [
                [_spec(name, array) for name, array in zip(own, row, strict=True)]
                for own, row in zip(names, rows, strict=True)
            ]
            for field, rows in self._rows.items()
        }
        self.groups = tuple(self._group(index, row) for index, row in enumerate(states))
        """What the header of the write tells about the frames."""

    def _group(self, index: int, row: Sequence[ParameterState]) -> GroupState:
        # torch's SGD keeps no count; a parameter with state has had at least one step.
        steps = tuple(int(np.asarray(state.get(STEP, 1 if state else 0))) for state in row)
        entries = (
            StateEntries(
                field,
                tuple(field in state for state in row),
                tuple(StateShape(spec.shape, spec.dtype) for spec in specs[index]),
            )
            for field, specs in self._specs.items()
            # A field of other groups may be one that this group's algorithm does not have.
            if any(field in state for state in row)
        )
        return GroupState(self._first + index, steps, tuple(entries))

    def frames(self) -> Iterator[list[GatheredFrame]]:
        """The frames, in lists that suit one message each."""
        for field, rows in self._rows.items():
            yield from FlatView(self._specs[field], first_group=self._first).batches(rows, field)


def step_count(name: str, value: Any) -> int:
    """The step count in the entry "step" of the parameter `name`; raises `InvalidRequest` if it is no count."""
    number = float(np.asarray(value))
    if not (0 <= number < MOST_STEPS and number.is_integer()):
        raise InvalidRequest(problem=f"step of parameter {name!r} must be a whole number in [0, 2**62), got {number:g}")
    return int(np.asarray(value))


def _entries(group: GroupState, field: str) -> StateEntries | None:
    return next((entry for entry in group.entries if entry.field == field), None)


def specs_of(parameters: Sequence[ParameterSpec], entries: StateEntries | None) -> Sequence[ParameterSpec]:
    """Specs of what the flat buffer of a field holds: with the shapes of the entries, if any, else as the weights."""
    if entries is None or not entries.shapes:
        return parameters
    return [
        ParameterSpec(parameter.name, shape.sizes, shape.dtype)
        for parameter, shape in zip(parameters, entries.shapes, strict=True)
    ]


def state_dtypes(entries: StateEntries | None) -> Mapping[str, np.dtype[Any]]:
    """The dtypes of a field's states, by those in `specs_of`: those of the arithmetic if they have no own shapes."""
    return DTYPES if entries is not None and entries.shapes else _COMPUTED


def _spec(name: str, array: Array | None) -> ParameterSpec:
    return (
        ParameterSpec(name, _NOTHING, "float32")
        if array is None
        else ParameterSpec(name, array.shape, array.dtype.name)
    )
