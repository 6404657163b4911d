"""The groups and options of an optimizer whose weights a server holds, kept level with what a script does to them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optd.params.groups import ALGORITHM, NAME, PARAMS, read_algorithm
from optd.registration.group_algorithms import check_algorithms, check_named, show_algorithms
from optd.session.session import Session
from optd.torch import complex_parameters
from optd.torch.checks import check_ordered
from optd.torch.forms import GroupForm, NamedForms
from optd.torch.schedulers import warn_of_scheduler
from optd.torch.state_source import StateSource
from optd.torch.state_view import StateOnServer
from optd.torch.tensor_exchange import TensorExchange
from optd.torch.tensors import TensorGroup


class ServedGroups(torch.optim.Optimizer):
    """What steps and state have in common; see `optd.torch.optimizer.Served`."""

    algorithm: str
    """The algorithm of groups that name none; empty if there is no default."""
    session: Session
    state: Any
    """A view of the server's state: `StateOnServer`."""
    _exchange: TensorExchange
    _form: GroupForm
    """The form of groups that have the default algorithm."""
    _common: dict[str, Any]
    """Options that every algorithm has, as the constructor got them; torch's class does not know them."""
    _state_source: StateSource
    _state_view: StateOnServer
    _named_forms: NamedForms | None = None
    _all_defaults: dict[str, Any] | None = None
    """The default algorithm's options, if `defaults` has only those that all groups have."""
    _beside: list[dict[str, Any]] | None = None
    """All groups in order, while the constructor of torch's class runs: it sees only those of its own algorithm."""

    def _follow_groups(self) -> None:
        """Uses the dicts that `param_groups` has now; raises `StructureMismatch` if they are of other groups."""
        self._exchange.follow(self.param_groups)

    def _follow_state(self) -> None:
        """Sends the state that a script has assigned to `state`, and drops the cache of the state."""
        if self.state is not self._state_view:
            self._state_source.replace(self.state)
            self.state = self._state_view
        self._state_source.forget()

    # Algorithms

    @property
    def _own_defaults(self) -> dict[str, Any]:
        """The options of the default algorithm with their defaults, as torch's class has resolved them."""
        return self.defaults if self._all_defaults is None else self._all_defaults

    def _defaults_of(self, form: GroupForm) -> Mapping[str, Any]:
        return self._own_defaults if form.defaults is None else form.defaults

    def _forms(self) -> NamedForms:
        if self._named_forms is None:
            self._named_forms = NamedForms(self.session.algorithms())
        return self._named_forms

    def _named_form(self, param_group: Mapping[str, Any]) -> GroupForm | None:
        """The form of a group that names another algorithm than the default; None for other groups."""
        groups = self._exchange.groups
        name = str(param_group.get(NAME) or f"group{len(groups)}")
        named = read_algorithm(param_group, name)
        check_named(self.algorithm, named, name)
        if named in ("", self.algorithm):
            return None
        return self._forms().of(named)

    def _show_algorithms(self) -> None:
        """If a group names its algorithm, shows those of all groups, and in `defaults` only what all groups have.

        Schedulers of torch look into `defaults`, for instance whether there is a momentum that they could change.
        """
        groups = self._exchange.groups
        show_algorithms(self.algorithm, groups, self.param_groups)
        forms = {group.form: self._defaults_of(group.form) for group in groups}
        if forms.keys() == {self._form}:
            return
        own = self._own_defaults
        first = own if own else next(iter(forms.values()))
        self._all_defaults = own
        self.defaults = {name: value for name, value in first.items() if all(name in each for each in forms.values())}

    def _check_options(self) -> None:
        effective = self._exchange.registration.effective
        if effective.any:
            warn_of_scheduler(self, effective)
        check_algorithms(self.algorithm, self._exchange.groups, self.param_groups)
        self._check_entries()
        for group, options in zip(self._exchange.groups, self.param_groups, strict=True):
            complex_parameters.check_group(group, options)

    def _check_entries(self) -> None:
        """Raises `InvalidOption` or `UnknownOption` for options that groups cannot have."""
        names_algorithm = any(group.algorithm for group in self._exchange.groups)
        for group, options in zip(self._exchange.groups, self.param_groups, strict=True):
            self._check_group(group.form, options)
            if names_algorithm:
                self._forms().check_entries(group.form, self._defaults_of(group.form), options)

    def _check_group(self, form: GroupForm, options: Mapping[str, Any]) -> None:
        defaults = self._defaults_of(form)
        form.rules.check_fixed(options, defaults if form.defaults is None else {*defaults, *form.rules.fixed})

    # Groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group during training, which may name its algorithm; every worker of the job must add it.

        Raises what is wrong with the group, or `JobMismatch` if another worker has added a different group of this
        name.
        """
        with self._exchange.lock:
            if self._exchange.is_registered:
                self._follow_groups()
            check_ordered(param_group.get(PARAMS))
            form = self._named_form(param_group)
            self._complete(param_group, form)
            self._exchange.add(self._read_group(param_group, form or self._form), param_group)
            if self._beside is not None:
                self._beside.append(param_group)
            if self._beside is None or form is None:
                self.param_groups.append(param_group)
            if self._beside is None:
                self._show_algorithms()

    def _complete(self, param_group: dict[str, Any], form: GroupForm | None) -> None:
        """Has torch check a group beside all others and give it the defaults of its algorithm."""
        shown, defaults = self.param_groups, self.defaults
        self.param_groups = [*(shown if self._beside is None else self._beside)]
        self.defaults = dict(self._own_defaults if form is None else self._defaults_of(form))
        try:
            super().add_param_group(param_group)
        finally:
            self.param_groups, self.defaults = shown, defaults

    def _read_group(self, param_group: dict[str, Any], form: GroupForm) -> TensorGroup:
        defaults = self._defaults_of(form)
        self._check_group(form, param_group)
        form.rules.check_spelling(param_group, defaults)
        if param_group.get(ALGORITHM):
            self._forms().check_entries(form, defaults, param_group)
        read = TensorGroup.of(param_group, form, form.rules.served(defaults), self._exchange.groups)
        complex_parameters.check_group(read, {**self._common, **param_group})
        return read


def name_algorithms(params: Any) -> bool:
    """Whether some of the groups that torch takes as `params` name their algorithms."""
    return isinstance(params, list) and any(isinstance(group, dict) and group.get(ALGORITHM) for group in params)


def listed(params: Any) -> Any:
    """Params as a list, so that they can be looked at before torch does; what torch refuses stays as it is."""
    return list(params) if isinstance(params, Iterable) and not isinstance(params, torch.Tensor) else params
