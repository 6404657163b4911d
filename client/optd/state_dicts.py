"""State dicts as torch has them, with numpy arrays: packed from groups and states, taken apart, checked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from optd.arrays import Array
from optd.params import PARAMS
from optd.states import STEP, ParameterState
from optd_wire.dtypes import computed_dtype
from optd_wire.errors import DtypeMismatch, ShapeMismatch, StructureMismatch


def pack(states: Sequence[ParameterState], param_groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A state dict: parameters are indexed in the order of the groups, and those without a state are left out."""
    packed = []
    start = 0
    for group in param_groups:
        count = len(group[PARAMS])
        entry = {name: value for name, value in group.items() if name != PARAMS}
        packed.append({**entry, PARAMS: list(range(start, start + count))})
        start += count
    return {"state": {index: state for index, state in enumerate(states) if state}, "param_groups": packed}


def unpack(state_dict: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The states of a state dict by group and place; raises `StructureMismatch` where it is of other groups."""
    groups = state_dict["param_groups"]
    ours = [len(group[PARAMS]) for group in param_groups]
    theirs = [len(group[PARAMS]) for group in groups]
    if ours != theirs:
        raise StructureMismatch(what="state_dict", expected=f"groups of {ours} parameters", got=theirs)
    return [[state_dict["state"].get(index, {}) for index in given[PARAMS]] for given in groups]


def checked_state(name: str, array: Array, state: Mapping[str, Any], shaped: Collection[str]) -> ParameterState:
    """The state of the parameter `name` with arrays that fit it; entries that are None are as good as absent.

    Those in `shaped` have shapes of their own. Raises `ShapeMismatch` or `DtypeMismatch`.
    """
    checked = {}
    for field, value in state.items():
        if value is None:
            continue
        found = np.asarray(value)
        own = field == STEP or field in shaped
        if not own and found.shape != array.shape:
            raise ShapeMismatch(what=field, parameter=name, expected=array.shape, got=found.shape)
        expected = computed_dtype(array.dtype)
        if not own and found.dtype not in (array.dtype, expected):
            raise DtypeMismatch(what=field, parameter=name, expected=expected.name, got=found.dtype.name)
        if not own:
            found = found.astype(expected, copy=False)
        checked[field] = found
    return checked
