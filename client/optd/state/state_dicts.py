"""State dicts in torch's form with numpy arrays: packed, unpacked, checked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from optd.params.flat_view import Array
from optd.params.groups import PARAMS
from optd.state.all_parameters import STEP, ParameterState, step_count
from optd_wire.dtypes import COMPUTED, computed_dtype
from optd_wire.errors import DtypeMismatch, ShapeMismatch, StructureMismatch

# Rules may set schedules for some parameters.
_WITH_SCHEDULES = ("lr_schedule", "momentum_schedule", "schedules", "rules")
_START = "schedule_start"


def pack(states: Sequence[ParameterState], param_groups: Sequence[Mapping[str, Any]], version: int) -> dict[str, Any]:
    """Packs a state dict: parameters are indexed in the order of the groups; those without state are left out."""
    packed = []
    start = 0
    for group in param_groups:
        count = len(group[PARAMS])
        entry = {name: value for name, value in group.items() if name != PARAMS} | start_from(group, version)
        packed.append({**entry, PARAMS: list(range(start, start + count))})
        start += count
    return {"state": {index: state for index, state in enumerate(states) if state}, "param_groups": packed}


def start_from(group: Mapping[str, Any], version: int) -> dict[str, int]:
    """The entry `schedule_start` of a group for a state dict, counted from `version`.

    Empty if the group has no schedules, no rules and no start.
    """
    if _START not in group and all(group.get(name) is None for name in _WITH_SCHEDULES):
        return {}
    return {_START: group.get(_START, 0) - version}


def start_at(saved: Mapping[str, Any], version: int) -> dict[str, int]:
    """The inverse of `start_from`: the entry for a job at `version`."""
    return {_START: saved[_START] + version} if _START in saved else {}


def unpack(state_dict: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The states of a state dict by group and place; raises `StructureMismatch` if its groups differ."""
    groups = state_dict["param_groups"]
    ours = [len(group[PARAMS]) for group in param_groups]
    theirs = [len(group[PARAMS]) for group in groups]
    if ours != theirs:
        raise StructureMismatch(what="state_dict", expected=f"groups of {ours} parameters", got=theirs)
    return [[state_dict["state"].get(index, {}) for index in given[PARAMS]] for given in groups]


def checked_state(name: str, array: Array, state: Mapping[str, Any], shaped: Collection[str]) -> ParameterState:
    """Checks the state of the parameter `name` against its `array`; entries that are None count as absent.

    Entries in `shaped` have shapes of their own. Raises `ShapeMismatch` or `DtypeMismatch`.
    """
    checked: ParameterState = {}
    for field, value in state.items():
        if value is None:
            continue
        if field == STEP:
            checked[field] = step_count(name, value)
            continue
        found = np.asarray(value)
        own = field in shaped
        if not own and found.shape != array.shape:
            raise ShapeMismatch(what=field, parameter=name, expected=array.shape, got=found.shape)
        expected = computed_dtype(array.dtype)
        if not own and found.dtype not in (array.dtype, expected):
            raise DtypeMismatch(what=field, parameter=name, expected=expected.name, got=found.dtype.name)
        if not own:
            found = found.astype(expected, copy=False)
        elif found.dtype.name in COMPUTED:
            # torch rounds such state to the parameters' 16 bits; the server computes with it in float32.
            found = found.astype(COMPUTED[found.dtype.name], copy=False)
        checked[field] = found
    return checked
