"""What makes a class of `torch.optim` train weights that a server holds: `Served`, put before it.

Torch's class brings its arguments with their checks, `param_groups`, hooks, and all that schedulers ask for; the
step, the state and the weights are the server's.
"""

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import plain_option
from optd.registration.buffers import Holder
from optd.registration.local_changes import SEND, check_local_changes
from optd.registration.shared_arguments import shared_parameters
from optd.registration.unpicklable import belongs_to_a_session
from optd.session.connect_arguments import SessionArguments
from optd.session.session import Session
from optd.torch import complex_parameters, preemption
from optd.torch.checks import check_ordered
from optd.torch.distributed import shared_by_ranks
from optd.torch.forms import StateForm, form_of_class
from optd.torch.module_buffers import BuffersOf, holder_of
from optd.torch.options import Fixed
from optd.torch.served_groups import listed, name_algorithms
from optd.torch.served_state import ServedState
from optd.torch.served_steps import ServedSteps
from optd.torch.state_source import StateSource
from optd.torch.state_view import StateOnServer
from optd.torch.tensor_exchange import TensorExchange
from optd_wire.values import PushResult


class Served(ServedSteps, ServedState):
    """An optimizer of torch whose weights, state and options a server holds.

    Args:
        params: What torch takes, and torch's options after it. Dense tensors of float32, float64, float16, bfloat16,
            complex64 or complex128, on any device, whose elements do not share memory. They have the names that
            `named_parameters()` gives, else `param0`, …; groups have the "name" of their dict, else `group0`, …. If a
            name repeats, the server has another one: `NAME.2` for a group, `GROUP.NAME` for a parameter. A group may
            name another "algorithm" than that of the class: see below.
        session: An open session; one optimizer each.
        server: HOST:PORT of the server to open a session with, if none is given; default: OPTD_SERVER.
        job, worker, if_exists, policy, gradients, averages, progress, durable, recreate: As `optd.connect` takes them.
            Without a job's name, here or in the environment, the job is this optimizer's own and ends with it. Under
            torchrun, or if torch.distributed runs with several ranks, the n-th optimizers of all ranks share a job,
            whose policy is `optd.Sync(workers=WORLD_SIZE)` unless another one is named.
        lr_schedule: A schedule on the server that multiplies the `lr` of all groups; see `optd.schedules`.
        momentum_schedule: The same for `momentum`, or `betas[0]`.
        schedules: Schedules of other options by their names, as `{"weight_decay": optd.schedules.Linear(steps=1000)}`.
            `param_groups` have the values that schedules give to options in the next step, as of the last reply:
            `effective_lr` and the like. These entries are not options, and a state dict does not have them. If a
            scheduler of torch changes an option that has a schedule here, the product counts, and a warning says so.
        schedule_start: The job's version that schedules count from. A state dict has it relative to its own version, so
            that schedules go on from the same point in any job that loads it.
        rules: Options of parameters by their names, as `[{"match": "*.bias", "weight_decay": 0}]`; see `params.rules`.
        clip_norm: The largest norm of each group's gradient, which the server clips to it; groups may have their own.
        clip_value: The largest magnitude of the gradient's elements; groups may have their own.
        master_weights: Keep float32 weights of float16 and bfloat16 parameters as state. Changes nothing for others.
        lookahead_steps: After so many steps the slow weights move `lookahead_alpha` of the way to the weights, and the
            weights return to them; None: never.
        zero_copy: Leave tensors and gradients in memory that the session shares with the server, without copies.
            Changes nothing if the session shares no memory. See below.
        norms: Whether each step reports the norms of its gradient and of its update: see `last`.
        buffers: The model, or a dict of tensors by name, whose buffers travel with the job: the running statistics of
            BatchNorm, for example. See below. None: buffers stay with each worker.
        local_changes: What to do with weights that a script has changed since the last step: "send" them, if no other
            worker takes part in the job; "warn", each time, that the step replaces them; "ignore" them. See below.

    Torch computes on parameters of 16 bits in 16 bits; the server computes in float32 and rounds the weights after each
    step, which gives the numbers of torch's class on float32 parameters rounded likewise. Their state is float32 in
    `state_dict()`; torch's class rounds it to the parameters' dtype when it loads it. State dicts of torch's class are
    loaded unchanged.

    A group may name its own algorithm, as in `AdamW([{"params": matrices, "algorithm": "muon", "lr": 0.02}, {"params":
    others}], lr=3e-4)`. All groups are one job: a step is one push, one version and one norm to clip by, and schedulers
    move all groups. Options of the algorithm that the constructor gets, such as `lr` and `betas`, are defaults of the
    groups that have the algorithm of the class, whether they name it or not; groups of another algorithm begin with
    that algorithm's own defaults. Options that every algorithm has (`lr_schedule` to `lookahead_alpha` here) are
    defaults of all groups; one that a group's algorithm cannot have, such as a schedule of `betas` for Muon, is refused
    unless that group overrides it. If a group names its algorithm, `param_groups` show "algorithm" for each group,
    with the options of its own algorithm alone, and `defaults` has only what all groups have: a scheduler that would
    cycle a momentum, as `OneCycleLR` does, needs `cycle_momentum=False` unless all groups have `momentum`, or all
    `betas`. The state of a group has the names that torch's class for its algorithm gives. An option that only other
    algorithms have raises `UnknownOption`. A warning says if no group gets an option of the constructor.

    The first worker creates the job with the values of its tensors. Others that register the same names, shapes and
    algorithm attach to the job and get its weights.

    A step writes the new weights into the tensors. A change that a script has made to them since the last exchange
    counts, as in torch: the next step or push sends those parameters first. It finds them by their content, so that
    writes through `.data` count too. Of parameters above 16,384 elements (or fewer, if there are many) about 1,000
    elements are compared: a write through `.data` that touches none of them is not found. A change is not sent if other
    workers hold leases, or have stepped since these weights were pulled, because it would undo their steps: the step
    replaces it, and a warning says so once. In a `sync` job, and right after `load_state_dict`, it is sent although
    other workers hold leases, if they have not stepped since. It is not sent if messages round weights (`encoding`),
    because that would round the whole parameter on the server. `push_weights()` sends a change in every case. Changes
    of `param_groups` by a script or a scheduler travel to the server with the next step. `state` is a view of the
    server's state, read when it is asked for; what is assigned to it is sent. See `StateOnServer`.

    Sparse gradients, such as those of `nn.Embedding(sparse=True)`, travel as their rows; gradients that are sparse in
    more dimensions travel as their elements. Only weights that have changed come back. SGD, SparseAdam and Adagrad take
    sparse gradients, as in torch.

    With `buffers=model` each step and push also sends the buffers that have changed since the last exchange: those that
    the model's state dict has. In a round, and in accumulated pushes, their mean over the workers becomes the job's; in
    an `async` job the last push counts. Steps and pulls write the job's into the model, so that a worker that joins
    later and an evaluator that attaches have them too. Integers and bools come back exactly; if workers have different
    ones, the mean is rounded to the nearest integer. What the job does to gradients leaves buffers alone: clipping,
    `loss_scale`, sums, norms, encodings. They have a group of their own on the server, "buffers", which `param_groups`
    does not show. All workers of a job pass `buffers`, or none does.

    The server holds a complex parameter as its real and imaginary parts, with a last dimension of 2; `state_dict()` has
    complex state as torch has it. `clip_norm` bounds the 2-norm of complex gradients, which equals that of their parts.
    Other norms and `clip_value` are refused for complex gradients.

    An option such as `lr` may be a float32 tensor, and is then computed with in float32, as in torch, whatever the
    dtype of the parameters. Tensors of 16 bits are refused. Tuples such as `betas` may be any sequences.

    `foreach` and `fused` are accepted and change nothing. `capturable=True` and `differentiable=True` are refused: a
    graph cannot capture a step on a server, and autograd does not reach into one.

    With `zero_copy` each step and pull gives the parameters new memory (`.data`), which the server has written, and
    each backward pass puts gradients into memory that the server reads. The model, clipping, accumulation and scaling
    work as before. But `.grad` has the same memory after each `zero_grad()`, so clone gradients that you keep; and a
    view of a parameter's memory, or a tensor of which the parameter is a view, does not show the new weights. After
    `close()` the weights keep their values. In a forked child the weights follow those of the parent until the child
    steps; clone what you need there. Parameters on another device or not in C order are copied, and so are gradients of
    16 bits.

    May be used from several threads; their steps follow one another.
    """

    _source_of_state: ClassVar[type[StateSource]] = StateSource
    _is_open: bool = False
    """Whether there is a session."""
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
        `counts_in_int` whether that is an int instead of a tensor, `fixed` which of its options the server's algorithm
        does not have.
        """
        super().__init_subclass__(**kwargs)
        if algorithm is not None:
            cls.algorithm = algorithm
            cls._form = form_of_class(algorithm, fixed or {}, StateForm(keeps_step, counts_in_int))
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
        buffers: BuffersOf | None = None,
        **options: Any,
    ) -> None:
        self._norms = norms
        holder = holder_of(buffers)
        self._exchange = TensorExchange(check_local_changes(local_changes))
        self._common = {name: options.pop(name) for name in GROUP_OPTIONS if name in options}
        arguments = SessionArguments.taken_from(options)
        check_ordered(params)
        params = listed(params)
        if name_algorithms(params):
            # The server declares the options of algorithms that groups name.
            self._open(arguments, session)
        self._read(super().__init__, params, *args, **options)
        if not self._is_open:
            self._open(arguments, session)
        self._serve(zero_copy, holder)

    def _open(self, arguments: SessionArguments, session: Session | None) -> None:
        self.session, self._owns_session = arguments.session(session, unnamed=shared_by_ranks)
        self._is_open = True

    def _read(self, constructor: Callable[..., None], *args: Any, **options: Any) -> None:
        """Calls the constructor of torch's class, which reads the params; closes a session that is open if it fails."""
        self._beside = []
        try:
            constructor(*args, **options)
            self.param_groups[:] = self._beside
        except BaseException:
            if self._is_open:
                self.close()
            raise
        self._beside = None

    def _serve(self, zero_copy: bool, buffers: Holder) -> None:
        """Registers with the server what torch's class has read."""
        # Some of torch's classes begin with a state; the server's begins with the first step.
        self._state_source = self._source_of_state(self._exchange, self.state)
        self.state = self._state_view = StateOnServer(self._state_source)
        # With fused=True a GradScaler would rely on torch's kernel to unscale the gradients.
        self._step_supports_amp_scaling = False
        try:
            self._show_algorithms()
            self._check_entries()
            own = self._own_defaults
            served = {name: plain_option(own[name]) for name in self._form.rules.served(own)}
            served |= {name: plain_option(value) for name, value in self._common.items()}
            complex_parameters.check_norm_type(self._exchange.groups, self.session.options)
            self._exchange.register(
                self.session, self.algorithm, served, self.param_groups, zero_copy=zero_copy, buffers=buffers
            )
            preemption.install()
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

        `version.version` is the job's version after it; `staleness` is how many versions the job was ahead of the
        weights that the gradients were computed on. `skipped`: no step was made because of a NaN or an infinity.
        `accumulated`: this many pushes, or rounds, are accumulated, and no step was made yet. `clipped`: the gradient
        was scaled down. `repeat`: the call was sent more than once, and counted once.

        With `norms=True` (of this optimizer or of the call), and whenever gradients are clipped, `norm.gradient` is the
        norm over all groups of the step's gradient, combined from all pushes and before clipping, as
        `torch.nn.utils.clip_grad_norm_` returns it; `norm.update` is that of the new weights minus the old ones, as
        they are stored; `group_norms["name"]` has both for one group. They are ``(sum of |x|**p)**(1/p)`` in float64
        with the job's `clip_norm_type` as p (default: 2). Otherwise, and if there was no step, `norm` is None and
        `group_norms` is empty.
        """
        return self._exchange.registration.last


def _signature(cls: type[Served]) -> inspect.Signature:
    """Torch's arguments, in whichever release of torch is installed, and after them those of all classes."""
    behind = cls.__mro__[cls.__mro__.index(Served) + 1 :]
    torchs = next(base for base in behind if not issubclass(Served, base))
    return inspect.Signature([*inspect.signature(torchs).parameters.values(), *shared_parameters(Served.__init__)])
