"""The exchange between the tensors of an optimizer and their job: gradients out, weights in."""

import itertools
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, NoReturn

import torch

from optd.exchange.read_gradients import check_gradients
from optd.exchange.row_gradients import GradientsByGroup
from optd.params.flat_view import Array, ArraysByGroup
from optd.params.groups import PARAMS, check_apart
from optd.registration.buffers import NO_BUFFERS, Holder
from optd.registration.local_changes import IGNORE, LocalChanges
from optd.registration.registration import Registration
from optd.session.lock import OwnedLock
from optd.session.session import Session
from optd.state.all_parameters import ParameterState
from optd.torch.arrays import as_tensor, dtype_of, shape_of
from optd.torch.distributed import policy_of_ranks
from optd.torch.options import as_torch
from optd.torch.sharing import SharedGradients, SharedWeights
from optd.torch.tensors import TensorGroup
from optd.torch.watched import CountedTensors, WatchedTensors
from optd_wire.errors import StructureMismatch, UnknownParameter
from optd_wire.values import Options


class TensorExchange:
    """Groups of tensors, and after `register` the job that holds their weights.

    A caller holds `lock` while it uses several methods in a row. `local_changes` is that of `Served`.
    """

    def __init__(self, local_changes: str) -> None:
        self._mode = local_changes
        self.lock = OwnedLock()
        self.groups: list[TensorGroup] = []
        self.shared_gradients: SharedGradients | None = None
        self._shared_weights: SharedWeights | None = None
        self._registration: Registration | None = None
        self._changes: LocalChanges | None = None

    def register(
        self,
        session: Session,
        algorithm: str,
        defaults: Options,
        dicts: Sequence[MutableMapping[str, Any]],
        *,
        zero_copy: bool,
        buffers: Holder = NO_BUFFERS,
    ) -> None:
        """Creates the session's job with the groups, or attaches to it; the tensors then hold its weights."""
        check_apart([pair for group in self.groups for pair in group.places()])
        registration = Registration(
            session,
            algorithm,
            defaults,
            self.groups,
            dicts,
            zero_copy=zero_copy,
            writable=True,
            default_policy=policy_of_ranks(),
            shown=as_torch,
            buffers=buffers,
        )
        self._registration = registration
        registration.read_weights = self._read
        if zero_copy:
            self._shared_weights = SharedWeights(registration)
            self.shared_gradients = SharedGradients(registration, self.groups)
        self._changes = LocalChanges(self._mode, registration, self._watched())
        self._attached = CountedTensors(self.groups)
        if registration.attached:
            self._take(complete=True)
        else:
            self._note()
        self._attached.note()

    def _watched(self) -> WatchedTensors | CountedTensors:
        return CountedTensors(self.groups) if self._mode == IGNORE else WatchedTensors(self.groups)

    @property
    def changes(self) -> LocalChanges:
        """Finds changes that a script makes to the tensors; exists once there is a job."""
        assert self._changes is not None
        return self._changes

    @property
    def is_registered(self) -> bool:
        """Whether `register` has succeeded."""
        return self._registration is not None

    @property
    def registration(self) -> Registration:
        """The lock of the registration."""
        assert self._registration is not None
        return self._registration

    def close(self) -> None:
        """Stops moving gradients; tensors and gradients keep their values."""
        if self.shared_gradients is not None:
            self.shared_gradients.close()

    def add(self, group: TensorGroup, options: MutableMapping[str, Any]) -> None:
        """Adds a group, also to the job if there is one; that pulls the weights of all groups."""
        if self._registration is None:
            self.groups.append(group)
            return
        check_apart([pair for each in (*self.groups, group) for pair in each.places()])
        self.changes.settle()
        with self.receiving() as registration:
            registration.add_group(group, options)
        self._take_group(len(self.groups), group, complete=True)
        self.groups.append(group)
        self._attached.add(group)
        self.changes.watched = self._watched()
        self._note()
        if self.shared_gradients is not None:
            self.shared_gradients.watch(len(self.groups) - 1)

    def gradients(self) -> GradientsByGroup:
        """The gradients of the tensors now, by group and place."""
        places = None if self.shared_gradients is None else self.shared_gradients.places()
        given = [group.gradients(None if places is None else places[index]) for index, group in enumerate(self.groups)]
        return check_gradients(given, self.groups)

    @contextmanager
    def sending(self) -> Iterator[Registration]:
        """The registration, for a call that sends gradients; frees them from shared memory if its fate is unknown."""
        try:
            yield self.registration
        except BaseException:
            if self.shared_gradients is not None and self.registration.session.in_doubt:
                self.shared_gradients.withdraw()
            raise

    @contextmanager
    def receiving(self, *, some: bool = False) -> Iterator[Registration]:
        """The registration, for a call that brings weights; with `some` it may bring only some of them."""
        with self.lock:
            self.changes.expect()
            for group in self.groups:
                if some:
                    group.read()
                else:
                    group.open()
            complete = False
            try:
                yield self.registration
                complete = True
            finally:
                # After a call that fails, unsent changes still count as changes.
                self._take(complete=complete, but=() if complete else self.changes.unsent)

    def pull(self, **wanted: Any) -> bool:
        """As `Registration.pull`, into the tensors."""
        changed = self.changes.watched.differences().all
        left_alone = self.changes.not_pulled(changed, wanted.get("groups", ()), wanted.get("parameters", ()))
        self.changes.expect()
        for group in self.groups:
            if wanted.get("groups") or wanted.get("parameters"):
                group.read()
            else:
                group.open()
        try:
            is_read = self.registration.pull(**wanted)
        except BaseException:
            self._take(complete=False, but=changed)
            raise
        if is_read:
            self._take(complete=True, but=left_alone)
        else:
            self.changes.note(but=changed)
        return is_read

    def pull_rows(self, parameter: str, ids: Any, weights: str = "") -> torch.Tensor:
        """As `Inquiry.pull_rows`, in a tensor on the parameter's device."""
        session = self.registration.session
        for group in self.groups:
            for name, tensor in zip(group.names, group.tensors, strict=True):
                if name == parameter:
                    wanted = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else ids
                    # A complex parameter without dimensions has no rows either.
                    shape, dtype = shape_of(tensor) if tensor.dim() else (), dtype_of(tensor)
                    rows = session.read_rows(name, shape, dtype, wanted, encoding=session.wire.weights, weights=weights)
                    return as_tensor(rows, is_complex=tensor.is_complex()).to(tensor.device)
        raise UnknownParameter(where=f"job {session.job!r}", parameter=parameter)

    def push_weights(self) -> None:
        """Replaces the job's weights with those of the tensors."""
        self._read()
        self.registration.write_weights()
        self._note()

    def _read(self) -> None:
        for group in self.groups:
            group.read()

    def _note(self) -> None:
        """Notes that the job has what the tensors hold."""
        self.changes.note()

    def follow(self, param_groups: Sequence[MutableMapping[str, Any]]) -> None:
        """Uses other dicts for the groups from now on; raises `StructureMismatch` if they are not of these groups."""
        if len(param_groups) != len(self.groups):
            what = "param_groups (add_param_group() adds one, and none can be taken away)"
            expected = f"the {len(self.groups)} groups that are registered"
            raise StructureMismatch(what=what, expected=expected, got=len(param_groups))
        for index, (group, given) in enumerate(zip(self.groups, param_groups, strict=True)):
            if not _are_same(group.originals, given[PARAMS]):
                _raise_other_tensors(f"param_groups[{index}][{PARAMS!r}]", group, given[PARAMS])
        if not _are_same(param_groups, self.registration.dicts):
            self.registration.dicts = param_groups

    def write_state(self, states: Sequence[Sequence[ParameterState]]) -> None:
        """Replaces the job's state and options, and the weights of tensors that a script has changed.

        If the job existed before and has not been used since it was joined, tensors that were not changed get back the
        weights that they had before, which belong to the state.
        """
        changed = set(self.changes.watched.differences().all)
        before = self.registration.weights_before(states)
        if not changed and before is None:
            self.registration.write_state(states)
            return
        self._read()
        if before is None:
            number = itertools.count()
            rows = [[array if next(number) in changed else None for array in group.arrays] for group in self.groups]
            self.registration.write_state(states, weights=rows)
            self.pull()  # weights that were not sent may have changed on the server
            return
        # Loading a model writes to all of its tensors, and may write the values that they hold already.
        weights = self._but(before, changed.union(self._attached.differences().all))
        self.registration.write_state(states, weights=weights)
        self._put(weights)
        self._note()

    def _but(self, before: ArraysByGroup, numbers: Collection[int]) -> list[list[Array]]:
        """The weights `before`, but those of the arrays for tensors with these numbers, counted through all groups."""
        number = itertools.count()
        return [
            [array if next(number) in numbers else earlier for array, earlier in zip(group.arrays, row, strict=True)]
            for group, row in zip(self.groups, before, strict=True)
        ]

    def _put(self, weights: ArraysByGroup) -> None:
        """Puts weights into the tensors."""
        copies = [[array.copy() for array in row] for row in weights]  # some arrays are the tensors' own memory
        for group in self.groups:
            group.open()
        self.registration.put_back(copies)
        for group in self.groups:
            group.take(complete=True)

    def _take(self, *, complete: bool, but: Collection[int] = ()) -> None:
        for index, group in enumerate(self.groups):
            self._take_group(index, group, complete=complete)
        self.changes.note(but)

    def _take_group(self, index: int, group: TensorGroup, *, complete: bool) -> None:
        shared = self._shared_weights
        group.take(complete=complete, places=None if shared is None else shared.places(index, group))


def _raise_other_tensors(what: str, group: TensorGroup, given: Sequence[torch.Tensor]) -> NoReturn:
    what = f"{what} (group {group.name!r})"
    if len(given) != len(group.names):
        expected = f"the {len(group.names)} parameters that are registered (add_param_group() takes more)"
        raise StructureMismatch(what=what, expected=expected, got=len(given))
    place = next(place for place, (p, q) in enumerate(zip(group.originals, given, strict=True)) if p is not q)
    expected = f"at place {place} the tensor that was registered as parameter {group.names[place]!r}"
    got = "another one: copy its values into that tensor, or construct another optimizer"
    raise StructureMismatch(what=what, expected=expected, got=got)


def _are_same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences have the same objects as entries."""
    return len(one) == len(other) and all(map(is_, one, other))
