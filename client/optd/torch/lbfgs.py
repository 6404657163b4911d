"""LBFGS: its state is torch's on the first parameter, and the server's on each."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from optd.lbfgs_state import gather, spread
from optd.params import PARAMS
from optd.states import ParameterState
from optd.torch.arrays import as_array, dtype_of
from optd.torch.optimizer import Served
from optd_wire.dtypes import computed_dtype


class LBFGS(Served, torch.optim.LBFGS, algorithm="lbfgs", keeps_step=False):
    """`torch.optim.LBFGS` as a service: for one group, and through `step(closure)` alone, as torch's.

    Each call of the closure is a push, and a version of the job; in between, the job's weights are points that are
    tried. What the closure writes to the parameters counts as it does in torch. Several workers share a step under
    `optd.Sync`: of the mean of their losses and gradients.
    """

    def _to_torch(
        self, rows: Sequence[Sequence[ParameterState]], shaped: Collection[str]
    ) -> defaultdict[torch.Tensor, Any]:
        (row,), (group,) = rows, self.param_groups
        first = group[PARAMS][0]
        found = gather(row, group["history_size"])
        states: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        if found:
            states[first] = {name: _to_tensors(value, first.device) for name, value in found.items()}
        return states

    def _from_torch(self, shaped: Collection[str]) -> list[list[ParameterState]]:
        (group,) = self._exchange.groups
        first = group.tensors[0]
        given = {name: _to_arrays(value) for name, value in self.state.get(first, {}).items()}
        shapes = [tuple(tensor.shape) for tensor in group.tensors]
        return [spread(given, group.names, shapes, computed_dtype(dtype_of(first)))]


def _to_tensors(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to_tensors(each, device) for each in value]
    if isinstance(value, np.ndarray | np.floating):
        return torch.from_numpy(np.asarray(value)).to(device)
    return value


def _to_arrays(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_arrays(each) for each in value]
    return as_array(value) if isinstance(value, torch.Tensor) else value
