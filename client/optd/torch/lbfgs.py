"""The state of L-BFGS: torch has all of it on the first parameter, the server a part of it on each."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from optd.params.flat_view import same_bits
from optd.params.groups import PARAMS
from optd.state.all_parameters import STEP, ParameterState
from optd.state.lbfgs import gather, spread
from optd.torch.arrays import as_array, dtype_of, shape_of
from optd.torch.optimizer import Served
from optd.torch.state_source import Place, StateSource
from optd_wire.dtypes import computed_dtype
from optd_wire.errors import InvalidRequest

FIRST: Place = (0, 0)


class LBFGSState(StateSource):
    """The state of L-BFGS, read and written as a whole: each entry is made of fields of all parameters."""

    def _has_state(self, tensor: torch.Tensor, place: Place) -> bool:
        return place == FIRST and "func_evals" in self.index().names(*FIRST)

    def _names(self, tensor: torch.Tensor, place: Place) -> list[str]:
        if not self._has_state(tensor, place):
            return []
        if tensor not in self._kept:
            self._read_everything()
        return list(self._kept.get(tensor, ()))

    def states(self, rows: Sequence[Sequence[ParameterState]]) -> defaultdict[torch.Tensor, Any]:
        """State in the form of torch's class: the first parameter has all of it."""
        (row,), (group,) = rows, self.exchange.registration.dicts
        first = group[PARAMS][0]
        found = gather(row, group["history_size"])
        states: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        if found:
            states[first] = {name: _to_tensors(value, first.device) for name, value in found.items()}
        return states

    def rows(self, states: Mapping[torch.Tensor, Mapping[str, Any]]) -> list[list[ParameterState]]:
        """State in the server's form: the reverse of `states`."""
        (group,) = self.exchange.groups
        first = group.tensors[0]
        given = {name: _to_arrays(value) for name, value in states.get(first, {}).items()}
        shapes = [shape_of(tensor) for tensor in group.tensors]
        return [spread(given, group.names, shapes, computed_dtype(dtype_of(first)))]

    def write(self, tensor: Any, state: Mapping[str, Any]) -> None:
        """Replaces the whole state, unless the server has exactly this state; raises what `replace` raises."""
        with self.exchange.lock:
            place = self.place_of(tensor)
            if state and place is not None and place != FIRST:
                problem = "state of lbfgs belongs to the first parameter, as in torch; assign it to that one"
                raise InvalidRequest(problem=problem)
            given = self.rows({tensor: state})
            current, _ = self.exchange.registration.state.read()
            if place is None or (place == FIRST and not all(map(_is_same, current[0], given[0]))):
                self.replace({tensor: state})
            self.forget(assigned=tensor)

    def write_entry(self, tensor: Any, name: str, value: Any) -> None:
        """Replaces one entry of the state."""
        with self.exchange.lock:
            rows, _ = self.exchange.registration.state.read()
            self.write(tensor, {**self.states(rows).get(tensor, {}), name: value})


class ServedLBFGS(Served):
    """The class that `optd.torch.LBFGS` derives from; its state is torch's, and is read and written whole."""

    _source_of_state: ClassVar[type[StateSource]] = LBFGSState


def _is_same(current: ParameterState, given: ParameterState) -> bool:
    names = [name for name in given if name != STEP]
    same = current.keys() - {STEP} == set(names)
    return same and all(same_bits(np.asarray(current[name]), np.asarray(given[name])) for name in names)


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
