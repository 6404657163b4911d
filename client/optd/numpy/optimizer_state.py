"""State dicts of an optimizer, read from the server and written to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from optd.numpy.optimizer_arrays import OptimizerArrays
from optd.params.groups import ALGORITHM, NAME, PARAMS
from optd.registration.accumulated import warn_of_loading, warn_of_saving
from optd.registration.group_algorithms import check_algorithms
from optd.state.all_parameters import ParameterState
from optd.state.state_dicts import checked_state, pack, start_at, unpack


class OptimizerState(OptimizerArrays):
    """State dicts in torch's form, with numpy arrays; see `optd.numpy.optimizer.Optimizer`."""

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's `state_dict` has it, with numpy arrays: `{"state": {0: ...}, "param_groups": [...]}`.

        Reads it from the server, all of one version. Parameters are indexed in the order of the groups.
        """
        warn_of_saving(self.session.job, self._registration.pending)
        rows, index = self._registration.state.read()
        groups = self._registration.effective.saved(self.param_groups)
        return pack(self._gathered(rows), groups, index.version.version)

    def _gathered(self, rows: Sequence[Sequence[ParameterState]]) -> list[ParameterState]:
        """The state of each parameter as `state_dict` has it, from that of the server by group and place."""
        return [state for row in rows for state in row]

    def _spread(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[ParameterState]]:
        """The inverse of `_gathered`: the server's state; raises what does not fit."""
        shaped_fields = self._registration.state.shaped_fields
        return [
            [
                checked_state(name, array, state, shaped_fields(index))
                for name, array, state in zip(group.names, group.arrays, row, strict=True)
            ]
            for index, (group, row) in enumerate(zip(self._registration.groups, rows, strict=True))
        ]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replaces state and options on the server with those of a state dict. Weights stay as they are.

        Exception: an optimizer that has attached to a job and not used it since takes back the weights that its arrays
        held before, which belong to the state, and sends them too. It does not if the arrays have been written to
        since, or if the job has this very state, to which the job's own weights belong.

        All or nothing: raises `StructureMismatch`, `ShapeMismatch` or `DtypeMismatch` if groups or parameters differ,
        `InvalidRequest` if a group had another algorithm, or what the server refuses.
        """
        self._check_arrays()
        groups = state_dict["param_groups"]
        given_states = unpack(state_dict, self.param_groups)
        check_algorithms(self._registration.default, self._registration.groups, groups)
        rows = self._spread(given_states)
        before = [dict(entry) for entry in self.param_groups]
        info = self._registration.info()
        warn_of_loading(self.session, info)
        version = info.version.version
        for entry, given in zip(self.param_groups, groups, strict=True):
            entry.update({name: value for name, value in given.items() if name not in (PARAMS, NAME, ALGORITHM)})
            entry.update(start_at(given, version))
        # If a script has written into the arrays since it attached, those weights belong to the state.
        has_loaded = bool(self._changes.watched.differences())
        weights = None if has_loaded else self._registration.weights_before(rows)
        try:
            self._registration.write_state(rows, weights=weights)
        except BaseException:
            for entry, old in zip(self.param_groups, before, strict=True):
                entry.clear()
                entry.update(old)
            raise
        if weights is not None:
            with self._receiving() as registration:
                registration.put_back(weights)
