"""The groups and options of an optimizer whose weights a server holds, kept level with what a script does to them."""

from typing import Any

import torch

from optd.params.groups import PARAMS
from optd.session.session import Session
from optd.torch import complex_parameters
from optd.torch.checks import check_ordered
from optd.torch.options import OptionRules
from optd.torch.schedulers import warn_of_scheduler
from optd.torch.state_source import StateSource
from optd.torch.state_view import StateOnServer
from optd.torch.tensor_exchange import TensorExchange
from optd.torch.tensors import TensorGroup


class ServedGroups(torch.optim.Optimizer):
    """What steps and state have in common; see `optd.torch.optimizer.Served`."""

    algorithm: str
    session: Session
    state: Any
    """A view of the server's state: `StateOnServer`."""
    _exchange: TensorExchange
    _rules: OptionRules
    _common: dict[str, Any]
    """Options that every algorithm has, as the constructor got them; torch's class does not know them."""
    _state_source: StateSource
    _state_view: StateOnServer

    def _follow_groups(self) -> None:
        """Uses the dicts that `param_groups` has now; raises `StructureMismatch` if they are of other groups."""
        self._exchange.follow(self.param_groups)

    def _follow_state(self) -> None:
        """Sends the state that a script has assigned to `state`, and drops the cache of the state."""
        if self.state is not self._state_view:
            self._state_source.replace(self.state)
            self.state = self._state_view
        self._state_source.forget()

    def _check_options(self) -> None:
        effective = self._exchange.registration.effective
        if effective.any:
            warn_of_scheduler(self, effective)
        for group, options in zip(self._exchange.groups, self.param_groups, strict=True):
            self._rules.check_fixed(options, self.defaults)
            complex_parameters.check_group(self.algorithm, group, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group during training; every worker of the job must add it.

        Raises what is wrong with the group, or `JobMismatch` if another worker has added a different group of this
        name.
        """
        with self._exchange.lock:
            if self._exchange.is_registered:
                self._follow_groups()
            check_ordered(param_group.get(PARAMS))
            super().add_param_group(param_group)
            try:
                self._exchange.add(self._read_group(param_group), param_group)
            except BaseException:
                self.param_groups.pop()
                raise

    def _read_group(self, param_group: dict[str, Any]) -> TensorGroup:
        self._rules.check_fixed(param_group, self.defaults)
        self._rules.check_spelling(param_group, self.defaults)
        read = TensorGroup.of(param_group, self._rules.served(self.defaults), self._exchange.groups)
        complex_parameters.check_group(self.algorithm, read, {**self._common, **param_group})
        return read
