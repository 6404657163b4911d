"""`Optimizer`, for numpy arrays and an algorithm by name; `optd.algorithms` has a class for each algorithm."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

from optd.numpy.array_buffers import holder_of
from optd.numpy.optimizer_state import OptimizerState
from optd.numpy.optimizer_steps import OptimizerSteps
from optd.numpy.optimizer_text import describe, place_of
from optd.numpy.registered_arrays import RegisteredArrays
from optd.params.flat_view import Array
from optd.params.groups import NAME, PARAMS, ParamGroup, check_distinct, plain_option, read_group, read_groups
from optd.registration.group_algorithms import check_has_owner, default_and_params, job_algorithm
from optd.registration.local_changes import IGNORE, SEND, LocalChanges, Unwatched, WatchedArrays, check_local_changes
from optd.registration.registration import Registration
from optd.registration.shared_arguments import names_shared
from optd.registration.unpicklable import belongs_to_a_session
from optd.session.connect_arguments import SessionArguments
from optd.session.session import Session
from optd_wire.values import PushResult


class Optimizer(OptimizerSteps, OptimizerState):
    """An optimizer whose weights, groups and state a server holds.

    Args:
        algorithm: The default algorithm, such as "adam": that of all groups that name none. May be left out if each
            group names one: `optd.Optimizer(groups)`.
        params: A tree of arrays of float32, float64, float16 or ml_dtypes' bfloat16: a list, tuple, dict, namedtuple or
            dataclass of arrays or of trees, None in it standing for nothing; a list of `(name, tree)` pairs; or a list
            of group dicts `{"params": ..., "lr": ..., "name": ..., "algorithm": ...}` of any of these. A group may name
            its own algorithm, as in `[{"params": matrices, "algorithm": "muon", "lr": 0.02}, {"params": others}]`; it
            then has that algorithm's options and state. Writable numpy arrays hold the
            weights: they are written in place with what is pulled. In place of others, such as JAX's, new ones come
            with each pull: take them from `params`.
        session: An open session; one optimizer each.
        server: HOST:PORT of the server to open a session with, if none is given; default: OPTD_SERVER.
        job, worker, if_exists, policy, gradients, averages, progress, durable, recreate: As `optd.connect` takes them.
            Without a job's name, here or in the environment, the job is this optimizer's own and ends with it.
        zero_copy: If the session shares memory with the server, leave weights and gradients there: compute with
            `weights`, put gradients into `gradients`, and nothing is copied. The arrays of params then stay as they
            are. Otherwise it changes nothing: `weights` are those arrays. Gradients of parameters of 16 bits are
            float32 in shared memory.
        norms: Have each step report the norms of its gradient and of its update: see `last`.
        buffers: A dict of writable numpy arrays by name that travel with the job as they are, such as running means of
            a model's inputs. Each step and push also sends those that have changed; in a round their mean over the
            workers becomes the job's, else the last push counts; steps and pulls write the job's in place. Integers and
            bools come back exactly; the mean of different ones is rounded. See `optd.torch.optimizer.Served`.
        local_changes: What to do if a script has changed weights in the arrays, which is looked for before each step:
            "send" them, if no other worker takes part in the job; "warn", each time, that the step replaces them;
            "ignore" them. Of arrays above 16,384 elements (or fewer, if there are many arrays) about 1,000 elements are
            compared: call `push_weights()` after you change a few elements of a large array. If a change is not sent
            because it would undo steps of other workers, or because messages would round it (`encoding`), a warning
            says so once.
        lr_schedule, momentum_schedule, schedules, schedule_start, clip_norm, clip_value, master_weights,
            lookahead_steps, lookahead_alpha, rules: Options that every group has, whatever its algorithm;
            `help(optd.SGD)` says what each means. They are defaults of all groups, also of those with an algorithm of
            their own. Each group must be able to have them, or override them: a schedule of `betas` is refused beside a
            group whose algorithm has no `betas`.
        **options: Options of the default algorithm, which `optctl algorithms NAME` lists: defaults of the groups that
            have this algorithm, whether they name it or not. They do not reach groups of another algorithm, which begin
            with that algorithm's own defaults. Without a default algorithm they are refused; a warning says if no group
            has the default algorithm.

    The first worker creates the job with the values of its arrays. Others that register the same names, shapes and
    algorithm attach to the job and get its weights.

    Raises:
        OptdError: Params or options are wrong; nothing has changed. See `optd.errors`.
        UnknownAlgorithm: The server has no algorithm of this name; the message names the nearest one.
        UnknownOption: An algorithm has no option of this name; the message names the algorithm and the nearest option.
        UnservedGroups, UnservedShape: A group's algorithm must be alone in its job, or takes other shapes.
        InvalidRequest: A group names no algorithm, and there is no default.
    """

    @names_shared
    def __init__(
        self,
        algorithm: Any = None,
        params: Any = None,
        *,
        session: Session | None = None,
        zero_copy: bool = False,
        local_changes: str = SEND,
        norms: bool = False,
        buffers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._norms = norms
        holder = holder_of(buffers)
        mode = check_local_changes(local_changes)
        default, params = default_and_params(algorithm, params)
        groups, self._in_groups = read_groups(params)
        job_algorithm(default, groups)  # so that a missing one is told before a session is opened
        self._leaves: list[list[Any]] | None = None
        arguments = SessionArguments.taken_from(options)
        check_has_owner(default, options)
        self.session, self._owns_session = arguments.session(session)
        self.param_groups: list[dict[str, Any]] = [_group_dict(group) for group in groups]
        """The groups as torch has them: "params" (numpy arrays, whatever the leaves of the tree are), "name", the
        resolved options of the server as of the last reply, and if a group names its own algorithm, each group's
        "algorithm". A value that is changed here travels to the server with the
        next step or push. If an option has a schedule, `effective_lr` and the like hold the value that the schedule
        gives it in the next step, as of the last reply; writing to them changes nothing and causes a warning."""
        self._gradients: dict[str, Any] | None = None
        self._gradient_rows: list[list[Array | None]] = []
        defaults = {name: plain_option(value) for name, value in options.items()}
        try:
            self._registration = Registration(
                self.session, default, defaults, groups, self.param_groups, zero_copy=zero_copy, buffers=holder
            )
        except BaseException:
            self.close()
            raise
        registration = self._registration
        self._changes = LocalChanges(mode, registration, Unwatched(), lambda: registration.in_arrays)
        self._watch()
        self._registered = RegisteredArrays(groups)

    def _watch(self) -> None:
        """Begins to look for changes in the arrays of all groups, which now equal the job's weights."""
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
        if registration is None:  # the constructor has failed, and a debugger shows the object
            return f"<optd.{type(self).__name__} of no job>"
        place = place_of(self.session, self.version)
        return describe(type(self).__name__, registration.default, place, self.param_groups)

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

        `version.version` is the job's version after it; `staleness` is how many versions the job was ahead of the
        weights that the gradients were computed on. `skipped`: no step was made because of a NaN or an infinity.
        `accumulated`: this many pushes, or rounds, are accumulated, and no step was made yet. `clipped`: the gradient
        was scaled down. `repeat`: the call was sent more than once, and counted once.

        With `norms=True` (of this optimizer or of the call), and whenever gradients are clipped, `norm.gradient` is the
        norm over all groups of the step's gradient, combined from all pushes and before clipping; `norm.update` is that
        of the new weights minus the old ones, as they are stored; `group_norms["name"]` has both for one group. They
        are ``(sum of |x|**p)**(1/p)`` in float64 with the job's `clip_norm_type` as p (default: 2). Otherwise, and if
        there was no step, `norm` is None and `group_norms` is empty.
        """
        return self._registration.last

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Adds a group during training, which may name its algorithm; every worker of the job must add it.

        Resets `gradients`: what has been added up there and not been pushed is lost. Raises what is wrong with the
        group, or `JobMismatch` if another worker has added a different group of this name.
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


def _group_dict(group: ParamGroup) -> dict[str, Any]:
    return {PARAMS: group.arrays, NAME: group.name, **group.options}
