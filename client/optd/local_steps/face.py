"""What `optd.LocalSteps` and `optd.torch.LocalSteps` share: a session, a worker, and what people see of both."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from optd.local_steps import saved
from optd.local_steps.outer import GlobalWeights, read_outer
from optd.local_steps.settings import Settings
from optd.local_steps.worker import LocalWeights, Worker
from optd.options.mirror import Shown, as_numpy
from optd.params.groups import NAME, PARAMS, ParamGroup
from optd.registration.unpicklable import belongs_to_a_session
from optd.session.connect_arguments import SessionArguments
from optd.session.job_names import JobName
from optd.session.session import Session
from optd.transport.lane_choice import LaneName
from optd_wire.values import Policy, PushResult


class LocalStepsFace:
    """Local steps of one worker, opened with `_open`. A context manager, which closes them."""

    session: Session
    _worker: Worker

    def _open(
        self,
        groups: Sequence[ParamGroup],
        local: LocalWeights,
        settings: Settings,
        outer: Mapping[str, Any],
        session: Session | None,
        arguments: dict[str, Any],
        *,
        unnamed: Callable[[], JobName | None] = lambda: None,
        policy: Policy | None = None,
        shown: Shown = as_numpy,
    ) -> None:
        """Creates the job with `groups`, whose arrays become the base of differences, or attaches to it."""
        algorithm, options = read_outer(outer)
        taken = SessionArguments.taken_from(arguments)
        if arguments:
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {next(iter(arguments))!r}")
        # Shared memory would carry differences as they are.
        lane: LaneName = "auto" if settings.encoding is None else "grpc"
        self.session, self._owns_session = taken.session(session, unnamed, lane=lane)
        self.param_groups: list[dict[str, Any]] = [
            {PARAMS: group.arrays, NAME: group.name, **group.options} for group in groups
        ]
        """The groups with the options of the outer optimizer, as the server holds them, and with the global weights in
        "params". An option that is changed here travels to the server with the next difference."""
        try:
            weights = GlobalWeights(
                self.session, algorithm, options, groups, self.param_groups, default_policy=policy, shown=shown
            )
            self._worker = Worker(weights, local, settings, time.monotonic)
        except BaseException:
            if self._owns_session:
                self.session.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(wait=error is None)

    def __getstate__(self) -> NoReturn:
        raise belongs_to_a_session(self)

    def close(self) -> None:
        """Ends the local steps, after the answers to what is under way are applied. Safe to call twice.

        Local steps since the last sync are not sent, and a warning says so: call `sync()` before. The weights stay as
        they are.
        """
        self._close(wait=True)

    def _close(self, *, wait: bool) -> None:
        try:
            if wait and self.session.is_open:
                self._worker.close()
        finally:
            if self._owns_session:
                self.session.close()

    def sync(self) -> None:
        """Sends all that has been computed since the last syncs now; the global weights replace the local ones.

        There is nothing to mix, whatever `alpha` is: no step is taken while the differences are on their way.
        For the end of a training, and before a checkpoint or an evaluation of the global weights. Blocks until the
        answers are there; in a `sync` job it waits for the other workers, which must call it at the same step. The
        schedule begins anew. Raises what a push or a pull raises.
        """
        self._worker.sync()

    @property
    def every(self) -> int:
        """The local steps between two syncs of a fragment now; with "auto" it changes."""
        return self._worker.schedule.every

    @property
    def fragments(self) -> tuple[tuple[str, ...], ...]:
        """The names of the parameters of each fragment."""
        worker = self._worker
        return tuple(worker.outer.names(fragment.places) for fragment in worker.fragments)

    @property
    def version(self) -> int:
        """The newest version of the job whose weights have come here, at least those of one fragment."""
        return self._worker.version

    @property
    def unsent(self) -> int:
        """The local steps that no difference is known to have brought to the job.

        Steps whose difference is under way count until its answer is applied here, and steps whose sync has failed
        until it is known that they count, or the next sync has sent them.
        """
        return self._worker.unsent

    @property
    def last(self) -> PushResult | None:
        """The result of the last difference whose answer was applied here; see `optd.Optimizer.last`.

        If the difference does not count, `dropped` says why: it came too late, or the server went back.
        """
        return self._worker.last

    @property
    def weight(self) -> float | None:
        """The weight of this worker's differences in a mean with others, such as its examples; may be set.

        None: 1, or with `every="auto"` the number of local steps.
        """
        return self._worker.weight

    @weight.setter
    def weight(self, weight: float | None) -> None:
        self._worker.weight = weight

    def state_dict(self) -> dict[str, Any]:
        """The base of the differences and where the syncs stand, as numpy arrays and plain values.

        Waits for what is under way. Save the model's weights and the inner optimizer's state beside it, at the same
        moment. What an encoding has left out of earlier differences is not in it.
        """
        return saved.save(self._worker)

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Goes on where `state_dict()` was called; load the model's weights before. Returns whether it does.

        It does if the job has no later push of this worker, by its name: then the local weights are a difference to
        the saved base, and count as one, however far the job has come since. Otherwise they have counted already, at
        least in part: the worker begins anew from the job's weights, and a warning says so. Raises `InvalidRequest`
        for a state of other parameters, fragments or another delay.
        """
        return saved.load(self._worker, state)
