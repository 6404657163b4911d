"""What makes a class of `torch.optim` train weights that a server holds: `Served`, put before it.

Torch's class brings its arguments with their checks, `param_groups`, hooks, and all that schedulers ask for; the
step, the state and the weights are the server's.
"""

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self, overload

import torch

from optd.exchange.row_gradients import GradientsByGroup, has_rows
from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import PARAMS, plain_option
from optd.registration.accumulated import warn_of_loading, warn_of_saving
from optd.registration.local_changes import SEND, check_local_changes
from optd.registration.registration import belongs_to_a_session
from optd.session.connect_arguments import SessionArguments
from optd.session.push_settings import PushSettings
from optd.session.session import Session
from optd.state.state_dicts import start_at, start_from
from optd.torch import complex_parameters
from optd.torch.checks import check_ordered
from optd.torch.distributed import shared_by_ranks
from optd.torch.options import UNSERVED, Fixed, OptionRules
from optd.torch.schedulers import warn_of_scheduler
from optd.torch.state import undo_rounding
from optd.torch.state_source import StateSource
from optd.torch.state_view import StateOnServer
from optd.torch.tensors import TensorGroup
from optd.torch.weights import Exchange
from optd.transport.requests import Names
from optd_wire.values import PushResult


class Served(torch.optim.Optimizer):
    """An optimizer of torch whose weights, state and options a server holds.

    Args:
        params: What torch takes, and torch's options after it. Dense tensors of float32, float64, float16, bfloat16,
            complex64 or complex128, on any device; each element has memory of its own. They have the names that
            `named_parameters()` gives, else `param0`, …; groups have the "name" of their dict, else `group0`, …. Where
            a name repeats, the server has another one: `NAME.2` for a group, `GROUP.NAME` for a parameter.
        session: An open session; one optimizer each.
        server: HOST:PORT to open a session with, where none is given; also from OPTD_SERVER.
        job, worker, if_exists, policy, gradients, averages, progress: As `optd.connect` takes them. Without a name of a
            job, in the environment either, the job is this optimizer's own and ends with it. Where torch.distributed
            runs with several ranks, the n-th optimizer of each is one job, and its policy, unless one is named,
            `optd.Sync(workers=WORLD_SIZE)`.
        lr_schedule: A schedule of the server's that all groups follow; see `optd.schedules`.
        momentum_schedule: The same for `momentum`, or `betas[0]`.
        schedules: Schedules of other options by their names, as `{"weight_decay": optd.schedules.Linear(steps=1000)}`.
            What schedules make of options in the step that comes next is in `param_groups`, as `effective_lr` and the
            like, as of the last reply; they are no options, and no part of a state dict. A scheduler of torch's for an
            option that has a schedule here gives the product of both, and a warning.
        schedule_start: The job's version that these count from. A state dict has it counted from its own version, so
            that schedules go on where they stood in whichever job loads it.
        rules: Options of parameters by their names, as `[{"match": "*.bias", "weight_decay": 0}]`; see `params.rules`.
        clip_norm: The largest norm of each group's gradient, as the server clips it; groups may have their own.
        clip_value: The largest magnitude of its elements; groups may have their own.
        master_weights: Keep float32 weights of float16 and bfloat16 parameters as state. Changes nothing for others.
        lookahead_steps: After how many steps weights return to slow weights, which go `lookahead_alpha` of the way to
            them each time; None: never.
        zero_copy: Where the session shares memory with the server, let tensors and gradients lie there, without
            copies; elsewhere it changes nothing. See below.
        norms: Have each step tell the norms of its gradient and of its update: see `last`.
        local_changes: What is done with weights that a script has changed, found before each step: "send" them, if no
            other worker takes part in the job; "warn", each time, that the step replaces them; "ignore" them. See
            below.

    Where torch computes on parameters of 16 bits in 16 bits, the server does in float32, and rounds the weights after
    each step: the numbers are those of torch's class on float32 parameters that are rounded so. Their state is float32
    in `state_dict()`, which torch's class rounds to the parameters' dtype when it loads it; that of torch's class is
    loaded as it is.

    The first worker creates the job with the values that its tensors have; others attach, if they register the same
    names, shapes and algorithm, and get its weights.

    A step writes the new weights into the tensors. What a script has changed in them since the last exchange counts, as
    in torch: the step, or push, sends those parameters first, by their content, whether torch knows of the change or it
    went through `.data`. Of a parameter of more than 16,384 elements, or fewer where they are many, about 1,000 are
    compared: a write through `.data` that meets none of them is not found. A change is not sent, but warned of once and
    replaced, if other workers hold leases, or have stepped since these weights were pulled: it would undo their steps.
    In a `sync` job, and right after `load_state_dict`, it is sent beside others who have not stepped since. It is not
    sent either if messages round weights (`encoding`): that would round all of the parameter on the server.
    `push_weights()` makes it count all the same. What a script or a scheduler changes in `param_groups` goes to the
    server with the next step. `state` is a view of what the server holds, read when asked for; what is assigned to it
    is sent. See `StateOnServer`.

    Sparse gradients, as of `nn.Embedding(sparse=True)`, travel as the rows that they have, and those that are sparse in
    more dimensions as the elements that they name. Only those weights come back that have changed. SGD, SparseAdam and
    Adagrad take them, as in torch.

    The server holds a complex parameter as its real and imaginary parts, with a last dimension of 2; `state_dict()` has
    complex state as torch has it. `clip_norm` bounds the 2-norm of complex gradients, which is that of their parts. Of
    other norms, and of `clip_value`, complex gradients are refused.

    A tensor of float32 as an option, such as `lr`, is computed with in float32, as in torch, whatever the parameters
    are. Those of 16 bits are refused. Tuples such as `betas` may be any sequences.

    `foreach` and `fused` are taken and change nothing. `capturable=True` and `differentiable=True` are refused: no
    graph captures a step on a server, and autograd does not reach into one.

    With `zero_copy` each step and pull gives the parameters other memory (`.data`), which the server has written, and
    each backward pass puts gradients into memory that the server reads. To the model, to clipping, accumulation and
    scaling that makes no difference. But `.grad` is the same memory after each `zero_grad()`, so clone what is to be
    kept; and who has a view of a parameter's memory, or of a tensor that it is a view of, does not see the new weights.
    After `close()` weights stay as they are. In a forked child they are those of the parent until it steps; clone what
    is needed there. Parameters on another device, or not in C order, are copied as without, and so are gradients of 16
    bits.

    May be used from several threads; their steps follow one another.
    """

    algorithm: str
    state: Any
    """A view of the server's state: `StateOnServer`."""
    _source_of_state: ClassVar[type[StateSource]] = StateSource
    _keeps_step: bool
    _counts_in_int: bool = False
    _rules: OptionRules
    __signature__: ClassVar[inspect.Signature | None]

    def __init_subclass__(
        cls,
        *,
        algorithm: str | None = None,
        keeps_step: bool = True,
        counts_in_int: bool = False,
        fixed: Fixed | None = None,
        **kwargs: Any,
    ) -> None:
        """Ties a class to an algorithm: `class Adam(Served, torch.optim.Adam, algorithm="adam")`.

        A subclass of such a class needs no arguments. `keeps_step` says whether torch's class has "step" in its state,
        `counts_in_int` whether that is an int and no tensor, `fixed` which of its options the server's algorithm does
        not have.
        """
        super().__init_subclass__(**kwargs)
        if algorithm is not None:
            cls.algorithm = algorithm
            cls._keeps_step, cls._counts_in_int = keeps_step, counts_in_int
            cls._rules = OptionRules(algorithm, {**UNSERVED, **(fixed or {})})
            cls.__signature__ = _signature(cls)
        elif "__init__" in vars(cls):
            cls.__signature__ = None

    def __init__(
        self,
        params: Any,
        *args: Any,
        session: Session | None = None,
        zero_copy: bool = False,
        local_changes: str = SEND,
        norms: bool = False,
        **options: Any,
    ) -> None:
        self._norms = norms
        self._exchange = Exchange(check_local_changes(local_changes))
        self._common = {name: options.pop(name) for name in GROUP_OPTIONS if name in options}
        arguments = SessionArguments.taken_from(options)
        check_ordered(params)
        super().__init__(params, *args, **options)
        opened, owned = arguments.session(session, unnamed=shared_by_ranks)
        self._serve(opened, owned, zero_copy)

    def _serve(self, session: Session, owned: bool, zero_copy: bool) -> None:
        """Has a server hold what torch's class has read."""
        # Some classes begin with a state; the server's begins with the first step.
        self._state_source = self._source_of_state(
            self._exchange, self.state, keeps_step=self._keeps_step, counts_in_int=self._counts_in_int
        )
        self.state = self._state_view = StateOnServer(self._state_source)
        # fused=True: a GradScaler would leave it to torch's kernel to unscale the gradients.
        self._step_supports_amp_scaling = False
        self.session, self._owns_session = session, owned
        try:
            served = {name: plain_option(self.defaults[name]) for name in self._rules.served(self.defaults)}
            served |= {name: plain_option(value) for name, value in self._common.items()}
            complex_parameters.check_norm_type(self._exchange.groups, session.options)
            self._exchange.register(self.session, self.algorithm, served, self.param_groups, zero_copy=zero_copy)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the session, if it was opened here. The tensors keep their weights."""
        self._exchange.close()
        if self._owns_session:
            self.session.close()

    def __getstate__(self) -> NoReturn:
        raise belongs_to_a_session(self)

    @property
    def version(self) -> int:
        """The version of the weights that the tensors hold."""
        return self._exchange.registration.base.version

    @property
    def last(self) -> PushResult | None:
        """The result of the last answered step, push or flush; None before the first.

        `version.version` is the job's version after it, and `staleness` how many versions the job had moved on since
        the weights that the gradients were computed on. `skipped`: there was no step, for a NaN or an infinity.
        `accumulated`: so many pushes, or rounds, are added up, and there was no step yet. `clipped`: the gradient was
        made smaller. `repeat`: the call was sent more than once, and counted once.

        With `norms=True`, of this optimizer or of the call, and where gradients are clipped: `norm.gradient` is the
        norm over all groups of the gradient that the step was made of, put together from all pushes and before
        clipping, as `torch.nn.utils.clip_grad_norm_` returns it; `norm.update` that of the new weights minus the old
        ones, as they are stored; `group_norms["name"]` has both for a group. They are ``(sum of |x|**p)**(1/p)`` in
        float64, where p is the job's `clip_norm_type`, 2 unless set. Otherwise `norm` is None and `group_norms` is
        empty, as where there was no step.
        """
        return self._exchange.registration.last

    # Weights and gradients

    @overload
    def step(
        self,
        closure: None = None,
        *,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> None: ...

    @overload
    def step(
        self,
        closure: Callable[[], float],
        *,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> float: ...

    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> float | None:
        """Pushes the gradients, steps on the server and pulls: the tensors then hold the new weights.

        Args:
            closure: Computes the gradients anew, and returns the loss. `LBFGS` calls it several times.
            weight: What the gradients count for in a mean with others, such as the number of examples; left out, 1.
            loss_scale: What the server is to divide them by, as a GradScaler would; left out, 1.
            norms: Whether `last` is to tell the norms of the step; left out, what the optimizer was given.

        Blocks until the step is done; in a `sync` job that takes the other workers' pushes. A call whose answer is
        lost is repeated and counts once. Gradients stay as they are.

        Returns:
            The closure's loss, of its first call.

        Raises:
            NonfiniteGradient: A gradient has a NaN or an infinite element; nothing has changed. (Unless the job skips
                such steps or zeroes such elements: see `optd.Gradients`.)
            RowsNotTaken, RowsOnly, RowsNeedZero: The algorithm takes no sparse gradients, or no others, or not with
                this option, as in torch.
            OptionConflict: An option was changed here and by somebody else; `pull()`, then step again or take the
                other's value.
            StaleEpoch: Another session has taken this worker's name, or the lease ran out.
            Unreachable, DeadlineExceeded: No answer in time.
            MemoryExceeded: The server has no room for weights that were changed here; there was no step.
        """
        norms = self._norms if norms is None else norms
        if closure is None:
            self._push_and_pull(PushSettings.of(weight, loss_scale, norms=norms))
            return None
        enabled = torch.enable_grad()(closure)
        loss = enabled()
        asks = self._exchange.registration.needs_closure
        told = _number(loss) if asks else None
        pushed = self._push_and_pull(PushSettings.of(weight, loss_scale, told, begins=asks, norms=norms))
        while pushed.unfinished:
            pushed = self._push_and_pull(PushSettings.of(weight, loss_scale, _number(enabled()), norms=norms))
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def flush(self, *, norms: bool | None = None) -> PushResult:
        """Makes the step of the gradients that the job has added up (`optd.Gradients(accumulate=...)`), and pulls.

        For the end of an epoch or of a program, where fewer pushes have come than make a step: it is of the mean of
        those that there are, or of their sum, whichever worker they are from. Where nothing is added up no step is
        made, and the result is `nothing_pending`. Gradients of the tensors are neither read nor changed; options that
        have been changed in `param_groups` go with it. Counts once, as `step` does. Blocks until the step is done; in a
        `sync` job all workers of a round flush, and it waits for the others.

        Raises `InvalidRequest` where another worker of the round pushes gradients instead, and what `step` raises.
        """
        exchange = self._exchange
        with exchange.lock:
            self._follow_groups()
            self._follow_state()
            self._check_options()
            exchange.changes.settle()
            with exchange.receiving(), exchange.sending() as registration:
                flushed = registration.flush(PushSettings(norms=self._norms if norms is None else norms))
        self._opt_called = True  # as for `push`
        return flushed

    # A function that torch compiles stops before this, and goes on after it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _push_and_pull(self, settings: PushSettings) -> PushResult:
        exchange = self._exchange
        with exchange.lock:
            self._follow_groups()
            self._follow_state()
            self._check_options()
            gradients = self._gradients()
            are_here = exchange.changes.settle()
            # Where the job has what was changed here, the weights that rows do not change are here.
            some = has_rows(gradients) and exchange.registration.in_arrays and are_here
            with exchange.receiving(some=some), exchange.sending() as registration:
                return registration.step(gradients, settings=settings, has_weights=some)

    def _gradients(self) -> GradientsByGroup:
        gradients = self._exchange.gradients()
        complex_parameters.check_gradients(self.algorithm, gradients, self._exchange.groups)
        return gradients

    def push(
        self,
        *,
        encoding: str | None = None,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> PushResult:
        """As `step`, without the pull: the tensors stay as they are.

        `encoding` is how messages carry this push, as `optd.connect` takes it; left out, the session's. `weight`,
        `loss_scale` and `norms` are those of `step`.
        """
        settings = PushSettings.of(weight, loss_scale, norms=self._norms if norms is None else norms)
        with self._exchange.lock:
            self._follow_groups()
            self._follow_state()
            self._check_options()
            gradients = self._gradients()
            self._exchange.changes.settle()
            with self._exchange.sending() as registration:
                pushed = registration.push(gradients, encoding, settings)
        self._opt_called = True  # which schedulers look for, to warn who steps them first
        return pushed

    def pull(
        self, *, only_if_newer: bool = False, groups: Names = (), parameters: Names = (), weights: str = ""
    ) -> bool:
        """Puts the current weights into the tensors, and the current options into `param_groups`.

        Args:
            only_if_newer: Where neither weights nor options have moved on since the last step or pull, transfer
                nothing and return False.
            groups: Only the weights of these groups.
            parameters: Only the weights of these parameters, or of these, too.
            weights: "ema" or "swa": that average of the weights (see `optd.EMA` and `optd.SWA`) instead of the weights
                themselves, which the next step, or `pull()`, brings back.
        """
        with self._exchange.lock:
            self._follow_groups()
            return self._exchange.pull(
                only_if_newer=only_if_newer, groups=groups, parameters=parameters, weights=weights
            )

    def pull_rows(self, parameter: str, ids: Any, *, weights: str = "") -> torch.Tensor:
        """Rows of a parameter's current weights by its name, in a new tensor on the parameter's device.

        `ids` are integers, in any order, with repeats where wanted. To have them in the parameter, under
        `torch.no_grad()`: `weight[ids] = optimizer.pull_rows("weight", ids)`. Raises what `optd.Optimizer.pull_rows`
        does.
        """
        with self._exchange.lock:
            return self._exchange.pull_rows(parameter, ids, weights)

    def push_weights(self) -> None:
        """Replaces the job's weights by what the tensors hold, whoever else takes part; the optimizer's state stays."""
        with self._exchange.lock:
            self._follow_groups()
            self._exchange.push_weights()

    # Groups and options

    def _follow_groups(self) -> None:
        """Goes on with the dicts that `param_groups` has now; raises `StructureMismatch` for other groups."""
        self._exchange.follow(self.param_groups)

    def _follow_state(self) -> None:
        """Sends the state that a script has put in the place of `state`; what was read of it is read anew."""
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
        """Adds a group in mid-training; every worker of the job does so.

        Raises what is wrong with the group, or `JobMismatch` where another worker has added another one under its
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

    # State

    def state_dict(self) -> dict[str, Any]:
        """As torch's, read from the server, all of one version."""
        with self._exchange.lock:
            self._follow_groups()
            self._follow_state()
            registration, groups = self._exchange.registration, self.param_groups
            warn_of_saving(self.session.job, registration.pending)
            rows, index = registration.state.read()
            self.state = self._state_source.states(rows)
            starts = [start_from(group, index.version.version) for group in groups]
            if any(starts) or registration.effective.any:
                # What torch packs, and hands to hooks, has to have them.
                saved = registration.effective.saved(groups)
                self.param_groups = [{**group, **start} for group, start in zip(saved, starts, strict=True)]
            try:
                return super().state_dict()
            finally:
                self.param_groups, self.state = groups, self._state_view

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replaces state and options, on the server, by those of an optimizer of this class or of torch's.

        Weights that have been changed here since the last exchange, as `model.load_state_dict()` does, are sent with
        them. All or nothing: raises torch's own errors, `ShapeMismatch`, or what the server finds wrong.
        """
        with self._exchange.lock:
            self._follow_groups()
            self._follow_state()
            groups, defaults = self.param_groups, dict(self.defaults)
            before = [dict(group) for group in groups]
            # As those hooks leave it that were there before.
            saved: list[dict[str, Any]] = []
            handle = self.register_load_state_dict_pre_hook(lambda _, given: saved.append(given))
            try:
                super().load_state_dict(state_dict)
                undo_rounding(self.state, self.param_groups, saved[0])
                info = self.session.info()
                warn_of_loading(self.session, info)
                version = info.version.version
                for group, loaded in zip(before, self.param_groups, strict=True):
                    loaded.update(start_at(loaded, version))
                    # What torch's classes do not have stays, where it is not told.
                    loaded.update({name: group[name] for name in GROUP_OPTIONS.keys() & group.keys() - loaded.keys()})
                self.defaults = defaults  # torch gives each class one of "differentiable", as if all had the option
                _replace(groups, self.param_groups)
                self._upload()
                self._state_source.initial = {}
            except BaseException:
                _replace(groups, before)
                raise
            finally:
                handle.remove()
                # torch has put others in their place; the registration goes on with those that it knows.
                self.param_groups = groups
                self.state = self._state_view
                self._state_source.forget()

    def _upload(self) -> None:
        self._check_options()
        self._exchange.write_state(self._state_source.rows(self.state))


def _number(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, torch.Tensor) else loss


def _replace(groups: list[dict[str, Any]], contents: list[dict[str, Any]]) -> None:
    for group, content in zip(groups, contents, strict=True):
        group.clear()
        group.update(content)


def _signature(cls: type[Served]) -> inspect.Signature:
    """Torch's arguments, and after them those that say where the server is and what the optimizer does."""
    torchs = cls.__mro__[cls.__mro__.index(Served) + 1]
    ours = inspect.signature(Served.__init__).parameters.values()
    session, *others = [parameter for parameter in ours if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature(
        [*inspect.signature(torchs).parameters.values(), session, *SessionArguments.parameters(), *others]
    )
