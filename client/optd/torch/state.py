"""State, as `torch.optim.Optimizer.state` has it, and as a `Registration` reads and writes it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from optd.arrays import Array
from optd.params import PARAMS
from optd.registration import ParameterState
from optd.torch.tensors import TensorGroup, dtype_name, shares_memory
from optd_wire.errors import ShapeMismatch

STEP = "step"


class StateOnServer(defaultdict[torch.Tensor, Any]):
    """What `optimizer.state` is: empty, and not to be filled, which would change nothing on the server."""

    _WHERE = "the server holds the state: state_dict() reads it, load_state_dict() replaces it"

    def __missing__(self, tensor: torch.Tensor) -> NoReturn:
        raise KeyError(self._WHERE)

    def __setitem__(self, tensor: torch.Tensor, state: Any) -> NoReturn:
        raise TypeError(self._WHERE)


def rows_to_torch(
    rows: Sequence[Sequence[ParameterState]],
    param_groups: Sequence[Mapping[str, Any]],
    initial: Mapping[torch.Tensor, Mapping[str, Any]],
    *,
    keeps_step: bool,
) -> defaultdict[torch.Tensor, Any]:
    """The state of all parameters, as `read_state` gives it; of those without one as it is initially, if at all."""
    states: defaultdict[torch.Tensor, Any] = defaultdict(dict)
    for group, row in zip(param_groups, rows, strict=True):
        for tensor, found in zip(group[PARAMS], row, strict=True):
            state = to_torch(found, tensor, keeps_step=keeps_step, fused=bool(group.get("fused")))
            if state or tensor in initial:
                states[tensor] = state or dict(initial[tensor])
    return states


def rows_from_torch(
    states: Mapping[torch.Tensor, Mapping[str, Any]], groups: Sequence[TensorGroup]
) -> list[list[ParameterState]]:
    """The state of all parameters, as `write_state` takes it. Raises `ShapeMismatch`."""
    return [
        [from_torch(states.get(tensor, {}), tensor, name) for name, tensor in zip(g.names, g.tensors, strict=True)]
        for g in groups
    ]


def to_torch(state: ParameterState, tensor: torch.Tensor, *, keeps_step: bool, fused: bool) -> dict[str, Any]:
    """Tensors with the device and the strides of the parameter's `tensor`; owns the arrays of `state` from then on."""
    if state and STEP not in state:
        state = {STEP: 0, **state}
    return {
        name: _step(value, tensor, fused) if name == STEP else _beside(tensor, value)
        for name, value in state.items()
        if keeps_step or name != STEP
    }


def _step(count: int, tensor: torch.Tensor, fused: bool) -> torch.Tensor:
    # torch counts in floats, in memory of the host unless its fused kernels count.
    if fused:
        return torch.tensor(float(count), dtype=torch.float32, device=tensor.device)
    double = torch.get_default_dtype() == torch.float64
    return torch.tensor(float(count), dtype=torch.float64 if double else torch.float32, device="cpu")


def _beside(tensor: torch.Tensor, array: Array) -> torch.Tensor:
    numbers = torch.from_numpy(array)
    if shares_memory(tensor):
        return numbers
    return torch.empty_like(tensor, requires_grad=False).copy_(numbers)


def from_torch(state: Mapping[str, Any], tensor: torch.Tensor, name: str) -> ParameterState:
    """Arrays that fit the parameter `name`; entries that are None are as good as absent. Raises `ShapeMismatch`."""
    read: ParameterState = {}
    for field, value in state.items():
        if value is None:
            continue
        array = value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)
        if field == STEP:
            read[field] = int(array)
        elif array.shape != tuple(tensor.shape):
            raise ShapeMismatch(what=field, parameter=name, expected=tuple(tensor.shape), got=array.shape)
        else:
            read[field] = array.astype(dtype_name(tensor.dtype), copy=False)
    return read
