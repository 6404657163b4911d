"""State dicts of an optimizer whose state a server holds."""

from collections import defaultdict
from typing import Any

from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import PARAMS
from optd.registration.accumulated import warn_of_loading, warn_of_saving
from optd.registration.group_algorithms import check_algorithms
from optd.state.state_dicts import start_at, start_from
from optd.torch.served_groups import ServedGroups
from optd.torch.state import undo_rounding


class ServedState(ServedGroups):
    """State dicts in torch's form, read from the server and written to it; see `optd.torch.optimizer.Served`."""

    def state_dict(self) -> dict[str, Any]:
        """As in torch; reads the state from the server, all of one version."""
        with self._exchange.lock:
            self._follow_groups()
            self._follow_state()
            registration, groups = self._exchange.registration, self.param_groups
            warn_of_saving(self.session.job, registration.pending)
            rows, index = registration.state.read()
            self.state = self._state_source.states(rows)
            starts = [start_from(group, index.version.version) for group in groups]
            if any(starts) or registration.effective.any:
                # torch packs these groups and passes them to hooks.
                saved = registration.effective.saved(groups)
                self.param_groups = [{**group, **start} for group, start in zip(saved, starts, strict=True)]
            try:
                return super().state_dict()
            finally:
                self.param_groups, self.state = groups, self._state_view

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replaces state and options on the server with those of an optimizer of this class or of torch's.

        Also sends weights that have been changed here since the last exchange, for instance by
        `model.load_state_dict()`. All or nothing: raises torch's own errors, `ShapeMismatch`, or what the server
        refuses.
        """
        with self._exchange.lock:
            self._follow_groups()
            self._follow_state()
            groups, defaults = self.param_groups, dict(self.defaults)
            before = [dict(group) for group in groups]
            # As earlier hooks leave the state dict.
            saved: list[dict[str, Any]] = []
            handle = self.register_load_state_dict_pre_hook(lambda _, given: saved.append(given))
            try:
                super().load_state_dict(state_dict)
                check_algorithms(self.algorithm, self._exchange.groups, self.param_groups)
                undo_rounding(self.state, self.param_groups, saved[0])
                info = self._exchange.registration.info()
                warn_of_loading(self.session, info)
                version = info.version.version
                for group, loaded in zip(before, self.param_groups, strict=True):
                    loaded.update(start_at(loaded, version))
                    # Options that torch's classes do not have keep their values, unless the state dict has them.
                    loaded.update({name: group[name] for name in GROUP_OPTIONS.keys() & group.keys() - loaded.keys()})
                self.defaults = defaults  # torch adds "differentiable" to those of every class that lacks it, too
                self._show_algorithms()
                _replace(groups, self.param_groups)
                self._upload()
                self._state_source.initial = {}
            except BaseException:
                _replace(groups, before)
                raise
            finally:
                handle.remove()
                # torch has replaced the dicts; the registration keeps those that it knows.
                self.param_groups = groups
                self.state = self._state_view
                self._state_source.forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Shows torch's class, which completes what it loads, only the groups of its own algorithm."""
        groups, states = state["param_groups"], state["state"]
        forms = [group.form for group in self._exchange.groups]
        own = [group for group, form in zip(groups, forms, strict=True) if form is self._form]
        tensors = [tensor for group in own for tensor in group[PARAMS] if tensor in states]
        own_states = defaultdict(dict, {tensor: states[tensor] for tensor in tensors})
        super().__setstate__({**state, "param_groups": own, "state": own_states})
        self.param_groups, self.state = groups, states

    def _upload(self) -> None:
        self._check_options()
        self._exchange.write_state(self._state_source.rows(self.state))


def _replace(groups: list[dict[str, Any]], contents: list[dict[str, Any]]) -> None:
    for group, content in zip(groups, contents, strict=True):
        group.clear()
        group.update(content)
