"""Conversion of state between torch's form and that of a `Registration`."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from optd.params.flat_view import Array
from optd.params.groups import PARAMS
from optd.state.all_parameters import STEP, ParameterState, step_count
from optd.torch.arrays import as_array, as_tensor, dtype_of, shape_of
from optd.torch.forms import GroupForm
from optd.torch.tensors import TensorGroup, shares_memory
from optd_wire.dtypes import COMPUTED, computed_dtype
from optd_wire.errors import ShapeMismatch

SLOW_WEIGHTS = "slow_weights"


def rows_to_torch(
    rows: Sequence[Sequence[ParameterState]],
    param_groups: Sequence[Mapping[str, Any]],
    initial: Mapping[torch.Tensor, Mapping[str, Any]],
    forms: Sequence[GroupForm],
    shaped: Sequence[Collection[str]],
) -> defaultdict[torch.Tensor, Any]:
    """The state of all parameters in torch's form; parameters without state have their initial one, if any.

    `forms` and `shaped` are those of each group: what torch's class does with "step", and the fields with shapes of
    their own.
    """
    states: defaultdict[torch.Tensor, Any] = defaultdict(dict)
    for group, row, form, own_shapes in zip(param_groups, rows, forms, shaped, strict=True):
        alike = [state for other, its in zip(rows, forms, strict=True) if its is form for state in other]
        numbers = {name for name in own_shapes if all(np.ndim(state.get(name, 0)) == 0 for state in alike)}
        keeps_step, fused = form.state.keeps_step, bool(group.get("fused"))
        for tensor, found in zip(group[PARAMS], row, strict=True):
            state = to_torch(found, tensor, own_shapes, numbers, keeps_step=keeps_step, fused=fused)
            if form.state.counts_in_int and STEP in state:
                state[STEP] = int(state[STEP])
            if state or tensor in initial:
                states[tensor] = state or dict(initial[tensor])
    return states


def undo_rounding(
    states: Mapping[torch.Tensor, dict[str, Any]],
    param_groups: Sequence[Mapping[str, Any]],
    saved: Mapping[str, Any],
) -> None:
    """Restores the `saved` state of parameters of 16 bits, which torch rounds to their dtype on loading.

    State that a hook has changed stays as it is.
    """
    tensors = [tensor for group in param_groups for tensor in group[PARAMS]]
    keys = [key for group in saved["param_groups"] for key in group[PARAMS]]
    for tensor, key in zip(tensors, keys, strict=True):
        for name, value in saved["state"].get(key, {}).items() if tensor.itemsize == 2 else ():
            loaded = states.get(tensor, {}).get(name)
            if _is_rounded(loaded, value):
                states[tensor][name] = value


def _is_rounded(loaded: Any, saved: Any) -> bool:
    """Whether the loaded value is the saved one, or that rounded; lists, as LBFGS has them, entry by entry."""
    if isinstance(loaded, list) and isinstance(saved, list) and len(loaded) == len(saved):
        return all(each is None or _is_rounded(own, each) for own, each in zip(loaded, saved, strict=True))
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return torch.equal(loaded, saved.to(device=loaded.device, dtype=loaded.dtype))
    return False


def rows_from_torch(
    states: Mapping[torch.Tensor, Mapping[str, Any]],
    groups: Sequence[TensorGroup],
    shaped: Sequence[Collection[str]],
) -> list[list[ParameterState]]:
    """The state of all parameters in the form that `write_state` takes.

    `shaped` are the fields of each group that have shapes of their own. Raises `ShapeMismatch`.
    """
    return [
        [
            from_torch(states.get(tensor, {}), tensor, name, own_shapes)
            for name, tensor in zip(group.names, group.tensors, strict=True)
        ]
        for group, own_shapes in zip(groups, shaped, strict=True)
    ]


def to_torch(
    state: ParameterState,
    tensor: torch.Tensor,
    shaped: Collection[str],
    numbers: Collection[str],
    *,
    keeps_step: bool,
    fused: bool,
) -> dict[str, Any]:
    """Tensors with the device and the strides of the parameter's `tensor`; takes the arrays of `state` over.

    Fields in `shaped` have their own strides. Fields in `numbers`, one number for a parameter, are in memory of the
    host, as in torch.
    """
    if state and STEP not in state:
        state = {STEP: 0, **state}
    made: dict[str, Any] = {}
    for name, value in state.items():
        if name != STEP:
            made[name] = value_to_torch(name, value, tensor, shaped, numbers)
        elif keeps_step or SLOW_WEIGHTS in state:  # lookahead decides by the count when to return to them
            made[name] = step_to_torch(value, tensor, fused)
    return made


def value_to_torch(
    name: str, value: Array, tensor: torch.Tensor, shaped: Collection[str], numbers: Collection[str]
) -> torch.Tensor:
    """One entry of `to_torch`, except the count."""
    if name in numbers:
        return torch.from_numpy(value).to(_scalar_dtype())
    if name in shaped:
        return torch.from_numpy(value).to(tensor.device)
    return _beside(tensor, value)


def step_to_torch(count: int, tensor: torch.Tensor, fused: bool) -> torch.Tensor:
    """A count as torch keeps it: a float tensor, in memory of the host unless the class is fused."""
    if fused:
        return torch.tensor(float(count), dtype=torch.float32, device=tensor.device)
    return torch.tensor(float(count), dtype=_scalar_dtype(), device="cpu")


def _scalar_dtype() -> torch.dtype:
    """The dtype in which torch keeps single numbers."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def _beside(tensor: torch.Tensor, array: Array) -> torch.Tensor:
    numbers = as_tensor(array, is_complex=tensor.is_complex())
    if shares_memory(tensor):
        return numbers
    return torch.empty_like(tensor, dtype=numbers.dtype, requires_grad=False).copy_(numbers)


def from_torch(state: Mapping[str, Any], tensor: torch.Tensor, name: str, shaped: Collection[str]) -> ParameterState:
    """Arrays that fit the parameter `name`; entries that are None count as absent. Raises `ShapeMismatch`."""
    read: ParameterState = {}
    for field, value in state.items():
        if value is None:
            continue
        array = as_array(value) if isinstance(value, torch.Tensor) else np.asarray(value)
        if field == STEP:
            read[field] = step_count(name, array)
        elif field in shaped:
            # torch has rounded it to the parameters' 16 bits; the server computes with it in float32.
            read[field] = array.astype(COMPUTED.get(array.dtype.name, array.dtype), copy=False)
        elif array.shape != shape_of(tensor):
            raise ShapeMismatch(what=field, parameter=name, expected=shape_of(tensor), got=array.shape)
        else:
            read[field] = array.astype(computed_dtype(dtype_of(tensor)), copy=False)
    return read
