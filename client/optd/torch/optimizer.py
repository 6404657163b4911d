"""What makes a class of `torch.optim` train weights that a server holds: `Served`, put before it.

Torch's class brings its arguments with their checks, `param_groups`, hooks, and all that schedulers ask for; the
step, the state and the weights are the server's.
"""

import difflib
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self, overload

import torch

from optd.arrays import Array
from optd.lock import OwnedLock
from optd.params import PARAMS, plain_option, read_gradients
from optd.registration import Registration, open_session
from optd.session import Session
from optd.torch.sharing import SharedGradients, SharedWeights
from optd.torch.state import from_torch, to_torch
from optd.torch.tensors import TensorGroup
from optd.transport.base import Names
from optd_wire.errors import InvalidOption, UnknownOption
from optd_wire.values import PushResult

Fixed = Mapping[str, tuple[bool, str]]
"""Options of which a server has one value: the value, and why."""

# Options that say how torch computes, not what.
_IMPLEMENTATION = ("foreach", "fused")
_FIXED = {
    "differentiable": (False, "autograd does not reach into a server"),
    "capturable": (False, "no graph can capture a step on a server"),
}


class Served(torch.optim.Optimizer):
    """An optimizer of torch whose weights, state and options a server holds.

    Args:
        params: What torch takes, and torch's options after it. Dense tensors of float32 or float64, on any device.
            They have the names that `named_parameters()` gives, else `param0`, …; groups have the "name" of their
            dict, else `group0`, ….
        session: An open session; one optimizer each.
        server: HOST:PORT to open a session with, where none is given; also from OPTD_SERVER.
        job: The job's name for a session opened here.
        worker: The worker's name for a session opened here.
        zero_copy: Where the session shares memory with the server, let tensors and gradients lie there, without
            copies; elsewhere it changes nothing. See below.

    The first worker creates the job with the values that its tensors have; others attach, if they register the same
    names, shapes and algorithm, and get its weights.

    A step writes the new weights into the tensors. What is changed in them here is replaced by that, with a warning
    where torch knows of the change; `push_weights()` makes it count. What a script or a scheduler changes in
    `param_groups` goes to the server with the next step. `state` is empty: `state_dict()` reads it from the server.

    With `zero_copy` each step and pull gives the parameters other memory (`.data`), which the server has written, and
    each backward pass puts gradients into memory that the server reads. To the model, to clipping, accumulation and
    scaling that makes no difference. But `.grad` is the same memory after each `zero_grad()`, so clone what is to be
    kept; and who has a view of a parameter's memory, or of a tensor that it is a view of, does not see the new weights.
    After `close()` weights stay as they are. In a forked child they are those of the parent until it steps; clone what
    is needed there. Parameters on another device, or not in C order, are copied as without.

    May be used from several threads; their steps follow one another.
    """

    algorithm: ClassVar[str]
    _keeps_step: ClassVar[bool]
    _fixed: ClassVar[Fixed]
    __signature__: ClassVar[inspect.Signature | None]

    def __init_subclass__(
        cls, *, algorithm: str | None = None, keeps_step: bool = True, fixed: Fixed | None = None, **kwargs: Any
    ) -> None:
        """Ties a class to an algorithm: `class Adam(Served, torch.optim.Adam, algorithm="adam")`.

        A subclass of such a class needs no arguments. `keeps_step` says whether torch's class has "step" in its state,
        `fixed` which of its options the server's algorithm does not have.
        """
        super().__init_subclass__(**kwargs)
        if algorithm is not None:
            cls.algorithm = algorithm
            cls._keeps_step = keeps_step
            cls._fixed = {**_FIXED, **(fixed or {})}
            cls.__signature__ = _signature(cls)
        elif "__init__" in vars(cls):
            cls.__signature__ = None

    def __init__(
        self,
        params: Any,
        *args: Any,
        session: Session | None = None,
        server: str | None = None,
        job: str | None = None,
        worker: str | None = None,
        zero_copy: bool = False,
        **options: Any,
    ) -> None:
        self._lock = OwnedLock()
        self._shared_weights: SharedWeights | None = None
        self._shared_gradients: SharedGradients | None = None
        self._groups: list[TensorGroup] = []
        self._registration: Registration | None = None
        super().__init__(params, *args, **options)
        # fused=True: a GradScaler would leave it to torch's kernel to unscale the gradients.
        self._step_supports_amp_scaling = False
        self.session, self._owns_session = open_session(session, server, job, worker)
        try:
            defaults = {name: plain_option(self.defaults[name]) for name in self._served_options}
            self._registration = Registration(
                self.session,
                self.algorithm,
                defaults,
                self._groups,
                self.param_groups,
                zero_copy=zero_copy,
                writable=True,
            )
        except BaseException:
            self.close()
            raise
        if zero_copy:
            self._shared_weights = SharedWeights(self._registration)
            self._shared_gradients = SharedGradients(self._registration, self._groups)
        if self._registration.attached:
            self._take(complete=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the session, if it was opened here. The tensors keep their weights."""
        if self._shared_gradients is not None:
            self._shared_gradients.close()
        if self._owns_session:
            self.session.close()

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} can be neither pickled nor copied: it belongs to a session with a server; "
            "save state_dict(), or construct another one that attaches to the job"
        )

    @property
    def version(self) -> int:
        """The version of the weights that the tensors hold."""
        return self._registered.base.version

    @property
    def _registered(self) -> Registration:
        assert self._registration is not None
        return self._registration

    # Weights and gradients

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Pushes the gradients, steps on the server and pulls: the tensors then hold the new weights.

        Args:
            closure: Computes the gradients anew, and returns the loss.

        Blocks until the step is done; in a `sync` job that takes the other workers' pushes. A call whose answer is
        lost is repeated and counts once. Gradients stay as they are.

        Returns:
            The closure's loss.

        Raises:
            NonfiniteGradient: A gradient has a NaN or an infinite element; nothing has changed.
            NotAnArray: A gradient is sparse.
            OptionConflict: An option was changed here and by somebody else; `pull()`, then step again or take the
                other's value.
            StaleEpoch: Another session has taken this worker's name, or the lease ran out.
            Unreachable, DeadlineExceeded: No answer in time.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._push_and_pull()
        return loss

    # A function that torch compiles stops before this, and goes on after it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _push_and_pull(self) -> None:
        with self._lock:
            gradients = self._gradients()
            self._warn_of_changes()
            with self._receiving() as registration, self._sending():
                registration.step(gradients)

    def push(self, *, encoding: str | None = None) -> PushResult:
        """As `step`, without the pull: the tensors stay as they are.

        `encoding` is how messages carry this push, as `optd.connect` takes it; left out, the session's.
        """
        with self._lock, self._sending():
            return self._registered.push(self._gradients(), encoding)

    def pull(self, *, only_if_newer: bool = False, groups: Names = (), parameters: Names = ()) -> bool:
        """Puts the current weights into the tensors, and the current options into `param_groups`.

        Args:
            only_if_newer: Where neither weights nor options have moved on since the last step or pull, transfer
                nothing and return False.
            groups: Only the weights of these groups.
            parameters: Only the weights of these parameters, or of these, too.
        """
        with self._lock:
            for group in self._groups:
                if groups or parameters:
                    group.read()
                else:
                    group.open()
            complete = False
            try:
                complete = self._registered.pull(only_if_newer=only_if_newer, groups=groups, parameters=parameters)
            finally:
                self._take(complete=complete)
            return complete

    def push_weights(self) -> None:
        """Replaces the job's weights by what the tensors hold; the optimizer's state stays."""
        with self._lock:
            for group in self._groups:
                group.read()
            self._registered.write_weights()

    def _gradients(self) -> list[list[Array | None]]:
        for options in self.param_groups:
            self._check_fixed(options)
        places = None if self._shared_gradients is None else self._shared_gradients.places()
        given = [group.gradients(None if places is None else places[index]) for index, group in enumerate(self._groups)]
        return read_gradients(given, self._groups)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """For a call that sends gradients: where its fate is unknown, the server may still read them."""
        try:
            yield
        except BaseException:
            if self._shared_gradients is not None and self.session.in_doubt:
                self._shared_gradients.withdraw()
            raise

    @contextmanager
    def _receiving(self) -> Iterator[Registration]:
        """The registration, for a call that brings weights."""
        with self._lock:
            for group in self._groups:
                group.open()
            complete = False
            try:
                yield self._registered
                complete = True
            finally:
                self._take(complete=complete)

    def _take(self, *, complete: bool) -> None:
        for index, group in enumerate(self._groups):
            self._take_group(index, group, complete=complete)

    def _take_group(self, index: int, group: TensorGroup, *, complete: bool) -> None:
        shared = self._shared_weights
        group.take(complete=complete, places=None if shared is None else shared.places(index, group))

    def _warn_of_changes(self) -> None:
        changed = [name for group in self._groups for name in group.changed()]
        if changed:
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            warnings.warn(
                f"parameter {changed[0]!r}{others} has been changed here; the weights of job {self.session.job!r} "
                "replace the change: call push_weights() to send it, or pull() to drop it",
                stacklevel=6,
            )

    # Groups and options

    @property
    def _served_options(self) -> list[str]:
        """The options that the server's algorithm has, too."""
        return [name for name in self.defaults if name not in _IMPLEMENTATION and name not in self._fixed]

    def _check_fixed(self, options: Mapping[str, Any]) -> None:
        for name, (value, why) in self._fixed.items():
            given = options.get(name, value)
            if given != value:
                raise InvalidOption(algorithm=self.algorithm, option=name, bound=f"{value} ({why})", value=given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group in mid-training; every worker of the job does so.

        Raises what is wrong with the group, or `JobMismatch` where another worker has added another one under its
        name.
        """
        with self._lock:
            super().add_param_group(param_group)
            try:
                self._groups.append(self._read_group(param_group))
            except BaseException:
                self.param_groups.pop()
                raise
            if self._shared_gradients is not None:
                self._shared_gradients.watch(len(self._groups) - 1)

    def _check_spelling(self, options: Mapping[str, Any]) -> None:
        """Torch lets a group have any entries, and schedulers use that; a slip of the pen it would lose in silence."""
        for name in options:
            close = difflib.get_close_matches(name, self.defaults, n=1, cutoff=0.85)
            if close and name not in self.defaults:
                names = ", ".join(self.defaults)
                advice = f"did you mean {close[0]!r}? The"
                raise UnknownOption(algorithm=self.algorithm, option=name, advice=advice, options=names)

    def _read_group(self, param_group: dict[str, Any]) -> TensorGroup:
        self._check_fixed(param_group)
        self._check_spelling(param_group)
        count = sum(len(group.tensors) for group in self._groups)
        group = TensorGroup.of(param_group, self._served_options, len(self._groups), count)
        if self._registration is not None:
            with self._receiving() as registration:
                registration.add_group(group, param_group)
            self._take_group(len(self._groups), group, complete=True)
        return group

    # State

    def state_dict(self) -> dict[str, Any]:
        """As torch's, read from the server, all of one version."""
        with self._lock:
            self.state = self._read_state()
            try:
                return super().state_dict()
            finally:
                self.state = defaultdict(dict)

    def _read_state(self) -> defaultdict[torch.Tensor, Any]:
        state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        for group, row in zip(self.param_groups, self._registered.read_state(), strict=True):
            for tensor, found in zip(group[PARAMS], row, strict=True):
                converted = to_torch(found, tensor, keeps_step=self._keeps_step, fused=bool(group.get("fused")))
                if converted:
                    state[tensor] = converted
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replaces state and options, on the server, by those of an optimizer of this class or of torch's.

        Weights that have been changed here since the last exchange, as `model.load_state_dict()` does, are sent with
        them. Raises torch's own errors, `ShapeMismatch`, or what the server finds wrong; nothing has changed here
        then.
        """
        with self._lock:
            groups = self.param_groups
            before = [dict(group) for group in groups]
            try:
                super().load_state_dict(state_dict)
                _replace(groups, self.param_groups)
                self._upload()
            except BaseException:
                _replace(groups, before)
                raise
            finally:
                # torch has put others in their place; the registration goes on with those that it knows.
                self.param_groups = groups
                self.state = defaultdict(dict)

    def _upload(self) -> None:
        for options in self.param_groups:
            self._check_fixed(options)
        rows = [
            [
                from_torch(self.state.get(tensor, {}), tensor, name)
                for name, tensor in zip(g.names, g.tensors, strict=True)
            ]
            for g in self._groups
        ]
        self._registered.send_options()
        self._registered.write_state(rows)
        if any(group.changed() for group in self._groups):
            self.push_weights()


def _replace(groups: list[dict[str, Any]], contents: list[dict[str, Any]]) -> None:
    for group, content in zip(groups, contents, strict=True):
        group.clear()
        group.update(content)


def _signature(cls: type[Served]) -> inspect.Signature:
    """Torch's arguments, and after them those that say where the server is."""
    torchs = cls.__mro__[cls.__mro__.index(Served) + 1]
    ours = inspect.signature(Served.__init__).parameters.values()
    keyword_only = [parameter for parameter in ours if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*inspect.signature(torchs).parameters.values(), *keyword_only])
