"""The optimizer face for numpy arrays, by an algorithm's name; `optd.algorithms` has a class for each.

For torch's parameters there is `optd.torch`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from optd.exchange.read_gradients import read_gradients, read_weights
from optd.exchange.row_gradients import GradientsByGroup
from optd.numpy.optimizer_text import describe, place_of
from optd.numpy.registered_arrays import RegisteredArrays
from optd.params import trees
from optd.params.array_like import Renew
from optd.params.flat_view import Array
from optd.params.groups import NAME, PARAMS, ParamGroup, check_distinct, plain_option, read_group, read_groups
from optd.params.pulled_rows import find_array
from optd.registration.accumulated import warn_of_loading, warn_of_saving
from optd.registration.local_changes import IGNORE, SEND, LocalChanges, Unwatched, WatchedArrays, check_local_changes
from optd.registration.registration import Registration, belongs_to_a_session
from optd.session.connect_arguments import SessionArguments
from optd.session.push_settings import PushSettings
from optd.session.session import Session
from optd.state.all_parameters import ParameterState
from optd.state.state_dicts import checked_state, pack, start_at, unpack
from optd.transport.requests import Names
from optd_wire.errors import InvalidRequest, StructureMismatch
from optd_wire.values import PushResult


class Optimizer:
    """An optimizer whose weights, groups and state a server holds.

    Args:
        algorithm: An algorithm of the server, such as "adam".
        params: A tree of arrays of float32, float64, float16 or ml_dtypes' bfloat16: a list, tuple, dict, namedtuple or
            dataclass of arrays or of trees, None in it standing for nothing; a list of `(name, tree)` pairs; or a list
            of group dicts `{"params": ..., "lr": ..., "name": ...}` of any of these. Writable numpy arrays hold the
            weights: they are written in place with what is pulled. In place of others, such as JAX's, new ones come
            with each pull: take them from `params`.
        session: An open session; one optimizer each.
        server: HOST:PORT to open a session with, where none is given; also from OPTD_SERVER.
        job, worker, if_exists, policy, gradients, averages, progress: As `optd.connect` takes them. Without a name of a
            job, in the environment either, the job is this optimizer's own and ends with it.
        zero_copy: Where the session shares memory with the server, leave weights and gradients there: compute with
            `weights`, put gradients into `gradients`, and nothing is copied. The arrays of params then stay as they
            are. Elsewhere it changes nothing: `weights` are those arrays. Gradients of parameters of 16 bits lie there
            in float32.
        norms: Have each step tell the norms of its gradient and of its update: see `last`.
        local_changes: What is done with weights that a script has changed in the arrays, found before each step: "send"
            them, if no other worker takes part in the job; "warn", each time, that the step replaces them; "ignore"
            them. Of an array of more than 16,384 elements, or fewer where they are many, about 1,000 are compared: call
            `push_weights()` after a change of a few elements of a large array. A change that is not sent because it
            would undo steps of other workers, or that messages would round (`encoding`), is warned of once.
        **options: Defaults of all groups, under torch's names; or those of every algorithm, such as
            `schedules={"weight_decay": optd.schedules.Linear(steps=1000)}`, or `master_weights=True`, which keeps
            float32 weights of parameters of 16 bits as state.

    The first worker creates the job with the values that its arrays have; others attach, if they register the same
    names, shapes and algorithm, and get its weights.

    Raises:
        OptdError: What is wrong with params or options, before anything has changed; see `optd.errors`.
    """

    def __init__(
        self,
        algorithm: str,
        params: Any,
        *,
        session: Session | None = None,
        zero_copy: bool = False,
        local_changes: str = SEND,
        norms: bool = False,
        **options: Any,
    ) -> None:
        self._norms = norms
        mode = check_local_changes(local_changes)
        groups, self._in_groups = read_groups(params)
        self._leaves: list[list[Any]] | None = None
        self.session, self._owns_session = SessionArguments.taken_from(options).session(session)
        self.param_groups: list[dict[str, Any]] = [_group_dict(group) for group in groups]
        """The groups as torch has them: "params" (numpy arrays, whatever the leaves of the tree are), "name", and the
        resolved options, as the server held them at the last reply. A value that is changed here goes to the server
        with the next step or push. Where an option has a schedule, `effective_lr` and the like are what it makes of the
        option in the step that comes next, as of the last reply; writing to them changes nothing, and is warned of."""
        self._gradients: dict[str, Any] | None = None
        self._gradient_rows: list[list[Array | None]] = []
        defaults = {name: plain_option(value) for name, value in options.items()}
        try:
            self._registration = Registration(
                self.session, algorithm, defaults, groups, self.param_groups, zero_copy=zero_copy
            )
        except BaseException:
            self.close()
            raise
        registration = self._registration
        self._changes = LocalChanges(mode, registration, Unwatched(), lambda: registration.in_arrays)
        self._watch()
        self._registered = RegisteredArrays(groups)

    def _watch(self) -> None:
        """Begins to look for changes in the arrays of all groups, which are what the job has."""
        if self._changes.mode != IGNORE:
            self._changes.watched = WatchedArrays(self._registration.groups)
            self._changes.watched.note()

    def __enter__(self) -> "Optimizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        registration = vars(self).get("_registration")
        if registration is None:  # its constructor has failed, and a debugger shows it
            return f"<optd.{type(self).__name__} of no job>"
        place = place_of(self.session, self.version)
        return describe(type(self).__name__, registration.algorithm, place, self.param_groups)

    def __getstate__(self) -> NoReturn:
        raise belongs_to_a_session(self)

    def close(self) -> None:
        """Closes the session, if it was opened here."""
        if self._owns_session:
            self.session.close()

    @property
    def version(self) -> int:
        """The version of the weights that the arrays hold."""
        return self._registration.base.version

    @property
    def last(self) -> PushResult | None:
        """The result of the last answered step, push or flush; None before the first.

        `version.version` is the job's version after it, and `staleness` how many versions the job had moved on since
        the weights that the gradients were computed on. `skipped`: there was no step, for a NaN or an infinity.
        `accumulated`: so many pushes, or rounds, are added up, and there was no step yet. `clipped`: the gradient was
        made smaller. `repeat`: the call was sent more than once, and counted once.

        With `norms=True`, of this optimizer or of the call, and where gradients are clipped: `norm.gradient` is the
        norm over all groups of the gradient that the step was made of, put together from all pushes and before
        clipping; `norm.update` that of the new weights minus the old ones, as they are stored; `group_norms["name"]`
        has both for a group. They are ``(sum of |x|**p)**(1/p)`` in float64, where p is the job's `clip_norm_type`, 2
        unless set. Otherwise `norm` is None and `group_norms` is empty, as where there was no step.
        """
        return self._registration.last

    @property
    def params(self) -> Any:
        """The current weights in the structure of the params; for groups a list with what "params" was of each.

        Leaves are those of `weights`. After `add_param_group` it is a list for groups, too.
        """
        groups = self._registration.groups
        made = [
            trees.rebuild(group.outline, iter(row)) for group, row in zip(groups, self._current_leaves(), strict=True)
        ]
        return made if self._in_groups else made[0]

    @property
    def weights(self) -> dict[str, Any]:
        """The current weights by parameter name: the arrays of params, or what takes their place (see `params`).

        With `zero_copy`, where the session shares memory with the server: arrays that cannot be written to, and that
        hold these weights until the next step or pull, whatever other workers do. Take them from here anew after each;
        what is to outlive that, copy. After the session is closed they stay as they are.
        """
        groups = self._registration.groups
        return {
            name: leaf
            for group, row in zip(groups, self._current_leaves(), strict=True)
            for name, leaf in zip(group.names, row, strict=True)
        }

    def _current_leaves(self) -> list[list[Any]]:
        """The weights by group and place as their owner sees them; the same ones until the next step or pull."""
        if self._leaves is None:
            registration = self._registration
            self._leaves = [
                [_leaf(*each) for each in zip(group.renewals, group.arrays, row, strict=True)]
                for group, row in zip(registration.groups, registration.weights, strict=True)
            ]
        return self._leaves

    def _check_arrays(self) -> None:
        """Raises what keeps weights from being written to the arrays, before anything changes anywhere."""
        self._registered.check(self._registration.groups, self.param_groups)

    @contextmanager
    def _receiving(self) -> Iterator[Registration]:
        """The registration, for a call that brings weights. After one that fails, changes are changes still."""
        self._changes.expect()
        unsent: Collection[int] = self._changes.unsent
        try:
            yield self._registration
            unsent = ()
        finally:
            self._leaves = None
            self._changes.note(but=unsent)

    @property
    def gradients(self) -> dict[str, Any]:
        """Arrays to put or add up gradients in, by parameter name, for a `step()` without arguments; zeros at first.

        An entry may be replaced by another array, or by None where a parameter has no gradient.

        With `zero_copy`, where the session shares memory with the server, they lie there. After a step that nobody
        knows the fate of, they have moved: take them from here again.
        """
        if self._gradients is None:
            self._gradients = self._new_gradients()
        return self._gradients

    def _new_gradients(self) -> dict[str, Any]:
        registration = self._registration
        rows = registration.shared_gradients() if registration.zero_copy else None
        if rows is None:
            rows = [[np.empty_like(array) for array in group.arrays] for group in registration.groups]
        named = {
            name: array
            for group, row in zip(registration.groups, rows, strict=True)
            for name, array in zip(group.names, row, strict=True)
        }
        for array in named.values():
            array.fill(0)
        self._gradient_rows = [list(row) for row in rows]
        return named

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets `gradients`, or with `set_to_none=False` fills them with zeros."""
        if set_to_none:
            self._gradients = None
        else:
            for gradient in self.gradients.values():
                if gradient is not None:  # which says that there is none
                    gradient.fill(0)

    def step(
        self,
        gradients: Any = None,
        *,
        encoding: str | None = None,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> Any:
        """Pushes gradients, steps on the server and pulls: the parameters' arrays, and `params`, then hold the weights.

        Args:
            gradients: Arrays in the structure of the params; None in it, or an entry left out of a dict, means no
                gradient. `(ids, rows)` in the place of an array are the gradients of some rows of it: n integers, and
                an array of shape (n, *shape[1:]). What is given for a row several times is added up. Or a dict of them
                by name. Or a closure that returns (loss, gradients), which `optd.LBFGS` calls several times. Left out:
                `gradients` of this optimizer, and no gradient for any parameter after `zero_grad()`.
            encoding: How messages carry this push and its reply, as `connect` takes it; left out, the session's.
            weight: What the gradients count for in a mean with others, such as the number of examples; left out, 1.
            loss_scale: What the server is to divide them by; left out, 1. It multiplies by the reciprocal in float32,
                as torch's GradScaler does.
            norms: Whether the result is to tell the norms of the step; left out, what the optimizer was given.

        Blocks until the step is done; in a `sync` job that takes the other workers' pushes. A call whose answer is
        lost is repeated and counts once. After gradients of rows only those weights are written that have changed since
        `version`: what a script writes into the arrays itself may stay there.

        Returns:
            The closure's loss, else a `PushResult`.

        Raises:
            NonfiniteGradient: A gradient has a NaN or an infinite element; nothing has changed. (Unless the job skips
                such steps, which the result then tells, or zeroes such elements: see `optd.Gradients`.)
            ShapeMismatch, DtypeMismatch, StructureMismatch, UnknownParameter: Gradients do not fit the params.
            RowOutOfRange: A parameter has no such row.
            RowsNotTaken, RowsOnly, RowsNeedZero: The algorithm does not take rows, or nothing else, or not with this
                option, as in torch.
            OptionConflict: An option was changed here and by somebody else; `pull()`, then step again or take the
                other's value.
            StaleEpoch: Another session has taken this worker's name, or the lease ran out.
            UnknownEncoding, InvalidRequest: There is no such encoding, or the session's lane does not carry it.
            EncodingOverflow: A finite number is too large for the encoding; nothing has changed.
            Unreachable, DeadlineExceeded: No answer in time.
        """
        norms = self._norms if norms is None else norms
        if not callable(gradients):
            return self._step(gradients, encoding, PushSettings.of(weight, loss_scale, norms=norms))
        loss, found = _evaluated(gradients)
        asks = self._registration.needs_closure
        first = PushSettings.of(weight, loss_scale, loss if asks else None, begins=asks, norms=norms)
        result = self._step(found, encoding, first)
        while result.unfinished:
            told, found = _evaluated(gradients)
            result = self._step(found, encoding, PushSettings.of(weight, loss_scale, told, norms=norms))
        return loss

    def _step(self, gradients: Any, encoding: str | None, settings: PushSettings) -> PushResult:
        self._check_arrays()
        rows = self._rows(gradients)
        with self._registration.lock, self._sending():
            are_here = self._changes.settle() or self._changes.mode == IGNORE
            with self._receiving() as registration:
                return registration.step(rows, encoding, settings, has_weights=are_here)

    def push(
        self,
        gradients: Any = None,
        *,
        encoding: str | None = None,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> PushResult:
        """As `step`, without the pull: the arrays stay as they are."""
        if callable(gradients):
            _, gradients = _evaluated(gradients)
        settings = PushSettings.of(weight, loss_scale, norms=self._norms if norms is None else norms)
        self._check_arrays()
        rows = self._rows(gradients)
        with self._registration.lock, self._sending():
            self._changes.settle()
            return self._registration.push(rows, encoding, settings)

    def flush(self, *, norms: bool | None = None) -> PushResult:
        """Makes the step of the gradients that the job has added up (`optd.Gradients(accumulate=...)`), and pulls.

        For the end of an epoch or of a program, where fewer pushes have come than make a step: it is of the mean of
        those that there are, or of their sum, whichever worker they are from. Where nothing is added up no step is
        made, and the result is `nothing_pending`. Options that have been changed in `param_groups` go with it. Counts
        once, as `step` does. Blocks until the step is done; in a `sync` job all workers of a round flush, and it waits
        for the others.

        Raises `InvalidRequest` where another worker of the round pushes gradients instead, and what `step` raises.
        """
        self._check_arrays()
        with self._registration.lock, self._sending():
            self._changes.settle()
            with self._receiving() as registration:
                return registration.flush(PushSettings(norms=self._norms if norms is None else norms))

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """For a call that sends gradients: where its fate is unknown, the server may still read them."""
        try:
            yield
        except BaseException:
            if self._gradients is not None and self._registration.zero_copy and self.session.in_doubt:
                self._gradients = {
                    name: None if array is None else array.copy() for name, array in self._gradients.items()
                }
            raise

    def pull(
        self, *, only_if_newer: bool = False, groups: Names = (), parameters: Names = (), weights: str = ""
    ) -> Any:
        """Puts the current weights into the arrays, and the current options into `param_groups`.

        Args:
            only_if_newer: Where neither weights nor options have moved on since the last step or pull, transfer
                nothing and return None.
            groups: Only the weights of these groups.
            parameters: Only the weights of these parameters; with `groups`, of both.
            weights: "ema" or "swa": that average of the weights (see `optd.EMA` and `optd.SWA`) instead of the weights
                themselves, which the next step, or `pull()`, brings back. `session.pull(weights="ema")` gives it in
                arrays of its own.

        With some groups or parameters `version` stays what it was, as gradients are computed on the oldest weights.

        Returns:
            The weights, as `params` has them; None where nothing was read.

        Raises:
            UnknownGroup, UnknownParameter: The job has none of that name; nothing has changed.
            UnknownAverage, EmptyAverage: The job keeps no such average, or nothing has entered it yet.
        """
        self._check_arrays()
        with self._registration.lock:
            changed = self._changes.watched.differences().all
            left_alone = self._changes.beside(changed, groups, parameters)
            self._changes.expect()
            try:
                pulled = self._registration.pull(
                    only_if_newer=only_if_newer, groups=groups, parameters=parameters, weights=weights
                )
            except BaseException:
                self._leaves = None
                self._changes.note(but=changed)
                raise
            if not pulled:
                self._changes.note(but=changed)
                return None
            self._leaves = None
            self._changes.note(but=left_alone)
            return self.params

    def pull_rows(self, parameter: str, ids: Any, *, weights: str = "") -> Array:
        """Rows of a parameter's current weights, in a new array of shape (n, *shape[1:]); nothing else changes.

        `ids` are n integers, in any order, with repeats where wanted. All rows are of one version, the job's current
        one; `weights` names an average of them, as in `pull`. To have them in an array of the params:
        `array[ids] = optimizer.pull_rows("table", ids)`.

        Raises:
            UnknownParameter: No group has a parameter of that name.
            RowOutOfRange: An id is not in [0, shape[0]).
            NotAnArray: The ids are no integers in one dimension.
        """
        array = find_array(self._registration.groups, parameter, self.session.job)
        encoding = self.session.wire.weights
        return self.session.read_rows(parameter, array.shape, array.dtype, ids, encoding=encoding, weights=weights)

    def push_weights(self, weights: Any = None) -> None:
        """Replaces the job's weights by what the arrays of the params hold; the optimizer's state stays.

        Args:
            weights: What replaces them instead, in the structure of the params or by name, as `step` takes gradients,
                in the dtypes of the params; None in it, or an entry left out of a dict, leaves that parameter as it is.
                For arrays that cannot be written to, such as JAX's, and with `zero_copy`. The current weights are then
                pulled.

        Counts whoever else takes part in the job; where there is nobody else, the next step sends changes by itself
        (see `local_changes`).

        Raises:
            ShapeMismatch, DtypeMismatch, StructureMismatch, UnknownParameter, NotAnArray: Weights do not fit the
                params; nothing has changed.
            InvalidRequest: With `zero_copy` the arrays do not hold the weights, and none are given.
        """
        self._check_arrays()
        with self._registration.lock:
            registration = self._registration
            if weights is None and not registration.in_arrays:
                problem = (
                    "with zero_copy the arrays of params do not hold the weights: give push_weights() those to send"
                )
                raise InvalidRequest(problem=problem)
            rows = None if weights is None else read_weights(weights, registration.groups, in_groups=self._in_groups)
            self._changes.unsent = self._changes.watched.differences().all
            with self._receiving():
                if rows is None:
                    registration.write_weights()
                else:
                    registration.write_given(rows)

    def _rows(self, gradients: Any) -> GradientsByGroup:
        if gradients is None:
            gradients = self._gradients or {}
            made = [array for row in self._gradient_rows for array in row]
            if made and len(gradients) == len(made) and all(map(is_, gradients.values(), made)):
                return self._gradient_rows  # which were made to fit
        return read_gradients(gradients, self._registration.groups, in_groups=self._in_groups)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Adds a group in mid-training; every worker of the job does so.

        `gradients` begin anew: what has been added up there and not been pushed is gone.

        Raises what is wrong with the group, or `JobMismatch` where another worker has added another one under its
        name.
        """
        self._check_arrays()
        known = self._registration.groups
        count = sum(len(group.arrays) for group in known)
        added = read_group(param_group, len(known), count)
        check_distinct([added], known)
        entry = _group_dict(added)
        with self._registration.lock:
            self._changes.settle()
            with self._receiving() as registration:
                registration.add_group(added, entry)
            self._watch()
        self.param_groups.append(entry)
        self._registered.add(added)
        self._gradients, self._in_groups = None, True

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's `state_dict` has it, with numpy arrays: `{"state": {0: ...}, "param_groups": [...]}`.

        Read from the server, all of one version. Parameters are indexed in the order of the groups.
        """
        warn_of_saving(self.session.job, self._registration.pending)
        rows, index = self._registration.state.read()
        groups = self._registration.effective.saved(self.param_groups)
        return pack(self._gathered(rows), groups, index.version.version)

    def _gathered(self, rows: Sequence[Sequence[ParameterState]]) -> list[ParameterState]:
        """The state of each parameter as `state_dict` has it, from what the server has by group and place."""
        return [state for row in rows for state in row]

    def _spread(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[ParameterState]]:
        """The way back: what the server is to have; raises what does not fit."""
        shaped = self._registration.state.shaped_fields()
        return [
            [
                checked_state(name, array, state, shaped)
                for name, array, state in zip(group.names, group.arrays, row, strict=True)
            ]
            for group, row in zip(self._registration.groups, rows, strict=True)
        ]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replaces state and options, on the server, by what `state_dict` gave. Weights stay as they are.

        An optimizer that has attached to a job, and has not used it since, takes the weights back that its arrays had
        before, and sends them along: they go with the state. Not where the arrays have been written to since, and not
        where the job has the very same state, whose weights it has, too.

        All or nothing: raises `StructureMismatch`, `ShapeMismatch` or `DtypeMismatch` where it is of other groups or
        parameters, or what the server finds wrong.
        """
        self._check_arrays()
        groups = state_dict["param_groups"]
        rows = self._spread(unpack(state_dict, self.param_groups))
        before = [dict(entry) for entry in self.param_groups]
        info = self.session.info()
        warn_of_loading(self.session, info)
        version = info.version.version
        for entry, given in zip(self.param_groups, groups, strict=True):
            entry.update({name: value for name, value in given.items() if name not in (PARAMS, NAME)})
            entry.update(start_at(given, version))
        # What a script has put into the arrays since it attached is what goes with the state.
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


def _evaluated(closure: Callable[[], Any]) -> tuple[Any, Any]:
    """Loss and gradients, of a closure; raises `StructureMismatch` where it returns something else."""
    result = closure()
    if type(result) is not tuple or len(result) != 2:
        raise StructureMismatch(what="a closure's result", expected="(loss, gradients)", got=type(result).__name__)
    loss, gradients = result
    return loss, gradients


def _leaf(renew: Renew | None, own: Array, array: Array) -> Any:
    """What the owner of a parameter sees of its weights, which lie in `array`."""
    if renew is not None:
        return renew(array)
    if array is own:
        return own
    view = array.view()
    view.flags.writeable = False
    return view


def _group_dict(group: ParamGroup) -> dict[str, Any]:
    return {PARAMS: group.arrays, NAME: group.name, **group.options}
