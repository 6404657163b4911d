"""The source of `optimizer.state`: the state of single parameters in torch's form, read when it is asked for."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from optd.caller_warnings import warn_caller
from optd.params.flat_view import same_bits
from optd.state.all_parameters import STEP, ParameterState
from optd.state.one_parameter import StateIndex
from optd.torch.forms import StateForm
from optd.torch.state import (
    SLOW_WEIGHTS,
    from_torch,
    rows_from_torch,
    rows_to_torch,
    step_to_torch,
    value_to_torch,
)
from optd.torch.tensor_exchange import TensorExchange
from optd_wire.errors import UnknownParameter
from optd_wire.values import JobVersion

TorchState = dict[str, Any]
"""One parameter's state as torch's class has it."""
Place = tuple[int, int]
"""Index of a group, and of a parameter in it."""


class StateSource:
    """Reads and writes the state of an optimizer's parameters.

    What has been read is cached until `forget`, until the tensors get weights of another version, or until a read shows
    that other workers have changed the job: everything cached is of one version.

    Args:
        exchange: The tensors and their job; each group has the form of its state.
        initial: The state that torch's class creates at construction; it holds until the server has state.
    """

    def __init__(self, exchange: TensorExchange, initial: Mapping[torch.Tensor, Mapping[str, Any]]) -> None:
        self.exchange = exchange
        self.initial: Mapping[torch.Tensor, Mapping[str, Any]] = dict(initial)
        self._index: StateIndex | None = None
        self._kept: dict[torch.Tensor, TorchState] = {}
        self._kept_at = JobVersion()
        """The version of the job in `_kept`."""
        self._base = JobVersion()
        self._told: list[tuple[torch.Tensor, str, torch.Tensor, int]] = []
        """Tensors that were returned, with torch's count of writes at that time."""

    # Reading

    def tensors(self) -> Iterator[tuple[torch.Tensor, Place]]:
        """The parameters in the order of their groups, with their places."""
        for index, group in enumerate(self.exchange.groups):
            for place, tensor in enumerate(group.originals):
                yield tensor, (index, place)

    def place_of(self, tensor: Any) -> Place | None:
        """The place of a parameter; None for anything else."""
        return next((place for each, place in self.tensors() if each is tensor), None)

    def index(self) -> StateIndex:
        """Which state there is, without the numbers."""
        registration = self.exchange.registration
        if self._base != registration.base:
            self.forget()
        if self._index is None:
            found = registration.state.index()
            self._keep_at(found.version)
            self._index, self._base = found, registration.base
        return self._index

    def _keep_at(self, version: JobVersion) -> None:
        """Drops the cache unless it is of this version."""
        if (version.version, version.revision) != (self._kept_at.version, self._kept_at.revision):
            self.forget()
            self._kept_at = version

    def is_empty(self) -> bool:
        """Whether the server holds neither state nor step counts, and torch's class begins without a state."""
        with self.exchange.lock:
            groups = self.index().groups
            counted = any(any(group.steps) or any(any(e.present) for e in group.entries) for group in groups)
            return not counted and not self.initial

    def __str__(self) -> str:
        session = self.exchange.registration.session
        known = "" if self._index is None else f" at version {self._kept_at.version}"
        return f"state of {sum(1 for _ in self.tensors())} parameters in job {session.job!r}{known}"

    def holders(self) -> list[torch.Tensor]:
        """The parameters that have a state."""
        with self.exchange.lock:
            return [tensor for tensor, place in self.tensors() if self._has_state(tensor, place)]

    def has_state(self, tensor: Any) -> bool:
        """Whether it is a parameter that has state."""
        with self.exchange.lock:
            place = self.place_of(tensor)
            return place is not None and self._has_state(tensor, place)

    def _has_state(self, tensor: torch.Tensor, place: Place) -> bool:
        return bool(self._names(tensor, place))

    def names(self, tensor: Any) -> list[str]:
        """The names of the entries of a parameter's state, in torch's order; empty if it is no parameter."""
        with self.exchange.lock:
            place = self.place_of(tensor)
            return [] if place is None else self._names(tensor, place)

    def _names(self, tensor: torch.Tensor, place: Place) -> list[str]:
        found = self.index().names(*place)
        if found and STEP not in found:
            found = [STEP, *found]
        if not self._form(place).keeps_step and SLOW_WEIGHTS not in found:
            found = [name for name in found if name != STEP]
        return found or list(self.initial.get(tensor, ()))

    def read(self, tensor: torch.Tensor, names: Sequence[str]) -> TorchState:
        """Entries of a parameter's state that exist; one call reads those that are not cached."""
        with self.exchange.lock:
            place = self.place_of(tensor)
            if place is None:
                return {}
            index = self.index()
            missing = [name for name in names if name not in self._kept.get(tensor, {})]
            if missing and not index.names(*place):
                self._keep(tensor, {name: _copied(value) for name, value in self.initial[tensor].items()})
            elif missing:
                self._fetch(tensor, place, missing, index)
            kept = self._kept.get(tensor, {})
            return {name: kept[name] for name in names if name in kept}

    def _fetch(self, tensor: torch.Tensor, place: Place, names: Sequence[str], index: StateIndex) -> None:
        numbers = [name for name in names if name != STEP]
        state: ParameterState = {STEP: index.groups[place[0]].steps[place[1]]}
        if numbers:
            state, version = self.exchange.registration.state.read_parameter(*place, names)
            self._keep_at(version)
        made = {name: self._to_torch(name, state[name], tensor, place, index) for name in names if name in state}
        if STEP in names and STEP not in made:
            made[STEP] = self._to_torch(STEP, 0, tensor, place, index)
        self._keep(tensor, made)

    def _to_torch(self, name: str, value: Any, tensor: torch.Tensor, place: Place, index: StateIndex) -> Any:
        if name == STEP:
            fused = bool(self.exchange.registration.dicts[place[0]].get("fused"))
            return int(value) if self._form(place).counts_in_int else step_to_torch(value, tensor, fused)
        shaped = self.exchange.registration.state.shaped_fields(place[0])
        form = self.exchange.groups[place[0]].form
        alike = [number for number, group in enumerate(self.exchange.groups) if group.form is form]
        return value_to_torch(name, value, tensor, shaped, index.single_numbers(alike))

    def _form(self, place: Place) -> StateForm:
        return self.exchange.groups[place[0]].form.state

    def _shaped(self) -> list[frozenset[str]]:
        """The fields of each group that have shapes of their own."""
        return [self.exchange.registration.state.shaped_fields(index) for index in range(len(self.exchange.groups))]

    def _keep(self, tensor: torch.Tensor, state: TorchState) -> None:
        self._kept.setdefault(tensor, {}).update(state)
        for name, value in state.items():
            self._told.extend((tensor, name, each, each._version) for each in _tensors_in(value))

    def read_all(self) -> None:
        """Reads the state of all parameters into the cache, all of one version."""
        with self.exchange.lock:
            self.index()
            if all(
                self._kept.get(tensor, {}).keys() >= set(self._names(tensor, place)) for tensor, place in self.tensors()
            ):
                return
            self._read_everything()

    def _read_everything(self) -> None:
        registration = self.exchange.registration
        rows, index = registration.state.read()
        self.forget()
        self._index, self._kept_at, self._base = index, index.version, registration.base
        for tensor, state in self.states(rows).items():
            found = {name: _copied(value) for name, value in state.items()} if tensor in self.initial else state
            self._keep(tensor, found)

    def states(self, rows: Sequence[Sequence[ParameterState]]) -> defaultdict[torch.Tensor, Any]:
        """State in torch's form, from the server's by group and place."""
        forms = [group.form for group in self.exchange.groups]
        return rows_to_torch(rows, self.exchange.registration.dicts, self.initial, forms, self._shaped())

    # Writing

    def rows(self, states: Mapping[torch.Tensor, Mapping[str, Any]]) -> list[list[ParameterState]]:
        """The inverse of `states`; raises what does not fit."""
        return rows_from_torch(states, self.exchange.groups, self._shaped())

    def replace(self, states: Mapping[torch.Tensor, Mapping[str, Any]]) -> None:
        """Replaces the state of all parameters; parameters that `states` leaves out lose theirs.

        Raises `UnknownParameter` for a key that is no parameter, `ShapeMismatch`, or what the server refuses.
        """
        with self.exchange.lock:
            known = {tensor for tensor, _ in self.tensors()}
            for key in states:
                if key not in known:
                    raise _unknown(key)
            self.exchange.registration.state.replace(self.rows(states))
            self.initial = {}
            self._kept_at = JobVersion()
            self.forget()

    def write(self, tensor: Any, state: Mapping[str, Any]) -> None:
        """Replaces the state of one parameter, unless the server has it already; raises as `replace` does.

        The other parameters' state is neither sent nor changed.
        """
        with self.exchange.lock:
            place, arrays = self._arrays_of(tensor, state)
            held = self.exchange.registration.state.index().names(*place)
            current = self._current(tensor, place, held, arrays)
            # A class without "step" does not give the count, so the server's stays.
            untold = set() if self._form(place).keeps_step or SLOW_WEIGHTS in arrays or not arrays else {STEP}
            gone = set(held) - arrays.keys() - untold
            same = current.keys() - untold == arrays.keys() and _are_same(current, arrays)
            if same and not gone:
                self._forget_parameter(tensor)
                return
            self._send(tensor, place, arrays, gone)
            self.forget(assigned=tensor)

    def write_entry(self, tensor: Any, name: str, value: Any) -> None:
        """Replaces one entry of a parameter's state, unless the server has it already; None removes it."""
        with self.exchange.lock:
            place, arrays = self._arrays_of(tensor, {name: value})
            held = self.exchange.registration.state.index().names(*place)
            current = self._current(tensor, place, held, [name])
            if current.keys() & {name} == arrays.keys() and _are_same(current, arrays):
                self._forget_parameter(tensor, name)
                return
            if not held:
                # The first entry that is sent takes the initial state of torch's class along.
                arrays = {key: each for key, each in {**current, **arrays}.items() if key != name or arrays}
            self._send(tensor, place, arrays, {name} - arrays.keys())
            self.forget(assigned=tensor)

    def _arrays_of(self, tensor: Any, state: Mapping[str, Any]) -> tuple[Place, ParameterState]:
        place = self.place_of(tensor)
        if place is None:
            raise _unknown(tensor)
        name = self.exchange.groups[place[0]].names[place[1]]
        return place, from_torch(state, tensor, name, self.exchange.registration.state.shaped_fields(place[0]))

    def _current(
        self, tensor: torch.Tensor, place: Place, held: Sequence[str], wanted: Collection[str]
    ) -> ParameterState:
        """The server's state now, in its own form, read anew: cached tensors may have been changed in place."""
        if not held:
            return self._arrays_of(tensor, self.initial.get(tensor, {}))[1]
        state, _ = self.exchange.registration.state.read_parameter(*place, [name for name in held if name in wanted])
        return state

    def _send(self, tensor: torch.Tensor, place: Place, arrays: ParameterState, gone: Collection[str]) -> None:
        self.exchange.registration.state.write_parameter(*place, arrays, gone)
        self.initial = {each: state for each, state in self.initial.items() if each is not tensor}

    # What is kept

    def forget(self, assigned: torch.Tensor | None = None) -> None:
        """Drops the cache.

        Warns of returned tensors that were changed in place, which has no effect on the server; except of those of a
        parameter that was `assigned`.
        """
        told, self._told = self._told, []
        self._index, self._kept = None, {}
        changed = [(tensor, name) for tensor, name, each, version in told if each._version != version]
        for tensor, name in changed:
            if tensor is not assigned:
                self._warn_of_change(tensor, name)
                break

    def _forget_parameter(self, tensor: torch.Tensor, name: str = "") -> None:
        """Drops a parameter's state, or one entry, from the cache, after it was assigned and sent."""
        self._told = [told for told in self._told if told[0] is not tensor or name not in ("", told[1])]
        kept = self._kept.get(tensor, {})
        for each in [name] if name else list(kept):
            kept.pop(each, None)

    def _warn_of_change(self, tensor: torch.Tensor, name: str) -> None:
        group, place = self.place_of(tensor) or (0, 0)
        parameter = self.exchange.groups[group].names[place]
        warn_caller(
            f"{name} in optimizer.state of parameter {parameter!r} was changed in place, which changes nothing on the "
            f"server: the tensors of optimizer.state are copies. Send it by optimizer.state[p][{name!r}] = tensor"
        )


def _are_same(current: ParameterState, given: ParameterState) -> bool:
    """Whether all entries in `given` equal the current ones."""
    return all(
        int(current[name]) == int(value) if name == STEP else same_bits(current[name], value)
        for name, value in given.items()
    )


def _unknown(key: Any) -> UnknownParameter:
    what = f"tensor of shape {tuple(key.shape)}" if isinstance(key, torch.Tensor) else key
    return UnknownParameter(where="this optimizer (its state is kept by parameter)", parameter=what)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _tensors_in(each)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
