"""The optimizer face for numpy arrays, by an algorithm's name; `optd.algorithms` has a class for each.

For torch's parameters there is `optd.torch`.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

from optd.numpy.optimizer_state import OptimizerState
from optd.numpy.optimizer_steps import OptimizerSteps
from optd.numpy.optimizer_text import describe, place_of
from optd.numpy.registered_arrays import RegisteredArrays
from optd.params.flat_view import Array
from optd.params.groups import NAME, PARAMS, ParamGroup, check_distinct, plain_option, read_group, read_groups
from optd.registration.local_changes import IGNORE, SEND, LocalChanges, Unwatched, WatchedArrays, check_local_changes
from optd.registration.registration import Registration
from optd.registration.unpicklable import belongs_to_a_session
from optd.session.connect_arguments import SessionArguments
from optd.session.session import Session
from optd_wire.values import PushResult


class Optimizer(OptimizerSteps, OptimizerState):
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


def _group_dict(group: ParamGroup) -> dict[str, Any]:
    return {PARAMS: group.arrays, NAME: group.name, **group.options}
