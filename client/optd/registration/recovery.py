"""How a registration goes on after the server came back with an older version of its job, or without the job.

A server that keeps every event comes back as it was, and the session alone deals with that.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from optd.params.flat_view import Array
from optd.registration.existing_job import same_weights
from optd.registration.registered_groups import RegisteredGroups
from optd.session.rejoining import PushFoundApplied
from optd.transport.numbers import StateSink
from optd_wire.errors import JobLost, RolledBack, RoundClosed, StaleGradient
from optd_wire.values import JobInfo, JobSpec, JobVersion, PushResult, ReadStateResult

logger = logging.getLogger("optd")
P = ParamSpec("P")
R = TypeVar("R", bound="RecoveringGroups")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UndonePush(PushResult):
    """The result of a push that was given up, because the weights that its gradient belongs to no longer exist.

    `version` is where the job stands now; `applied_version` is 0.
    """

    @property
    def dropped(self) -> str:
        """Why the gradient counts in no step."""
        return "the server no longer has the weights that it was computed on"


@dataclass(frozen=True, slots=True)
class LatePush(PushResult):
    """The result of a push that came too late to count; `version` is where the job stands now."""

    why: str = ""

    @property
    def dropped(self) -> str:
        """Why the gradient counts in no step."""
        return self.why


def recovers(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Decorates a method without gradients: if the server has gone back or lost the job, it is called once more."""

    @wraps(method)
    def recovering(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            while True:
                try:
                    return method(self, *args, **kwargs)
                except (RolledBack, JobLost) as cause:
                    self.recover(cause)

    return recovering


class RecoveringGroups(RegisteredGroups, ABC):
    """Groups that go on with whatever the server has of their job; see `Registration`."""

    _is_behind = False
    """Whether the arrays hold weights that no longer exist on the server: gradients of them are dropped."""

    _late = 0
    """How many gradients came too late."""

    read_weights: Callable[[], None] | None = None
    """What makes the groups' arrays hold the weights, if their owner keeps these elsewhere. It may replace arrays."""

    @abstractmethod
    def pull(self) -> bool:
        """Puts the job's weights into the arrays; see `Registration`."""

    @contextmanager
    def _holding_weights(self) -> Iterator[Sequence[Sequence[Array]]]:
        """The weights by group and place, also amid a call that is about to write new ones."""
        arrays = [list(group.arrays) for group in self._own.groups]
        if self.read_weights is not None:
            self.read_weights()
        try:
            yield self._incoming.all_weights
        finally:
            for group, row in zip(self._own.groups, arrays, strict=True):
                group.arrays[:] = row

    def recover(self, cause: RolledBack | JobLost) -> bool:
        """Takes part again; returns whether the push whose fate was unknown is in what the server has.

        The weights are those of before until the next pull. Raises `JobLost` unless the session creates jobs anew.
        """
        while True:
            if isinstance(cause, JobLost) and not self.session.recreate:
                raise cause
            try:
                return self._rejoin(cause) if isinstance(cause, RolledBack) else self._create_again()
            except (RolledBack, JobLost) as again:  # the server was restarted once more
                cause = again

    def _rejoin(self, cause: RolledBack) -> bool:
        membership, lost, applied = self.session.rejoin(cause.values["why"])
        self._take_up(membership.job)
        if lost:
            self._outgoing.forget_residuals()
        self._is_behind = True
        return applied

    def _create_again(self) -> bool:
        with self._holding_weights() as weights:
            own = [[array.copy() for array in row] for row in weights]
        membership, created = self.session.create_again(self._current_spec(), self._own.view.source(own))
        self._take_up(membership.job)
        if not created:
            self.pull()
        has_own = not membership.job.version.version if created else same_weights(own, self._incoming.all_weights)
        if not has_own:
            self._outgoing.forget_residuals()
        # A gradient of the worker's own weights is then one of the job's; but none amid a search.
        self._is_behind = not has_own or self._asks_for_closures()
        logger.warning(
            "job %s: the server at %s was restarted without it, so worker %s goes on in a new one, which has the "
            "weights and options of %s; optimizer state, schedules, averages and accumulated gradients begin anew. "
            "Start the server with --data-dir to keep jobs",
            self.session.job,
            self.session.address,
            self.session.worker,
            self._whose_weights() if created else "the worker that was first",
        )
        return False

    def _whose_weights(self) -> str:
        return "this worker, whose arrays held an average of the weights" if self._has_average else "this worker"

    def _current_spec(self) -> JobSpec:
        """The spec of the job with the options that the dicts have now."""
        specs = [group.spec() for group in self._own.groups]
        options = self._groups.all_options()
        named = [replace(spec, options=own) for spec, own in zip(specs[self._own.first :], options, strict=True)]
        groups = (*specs[: self._own.first], *named)
        return replace(self._spec, groups=groups, options=self.session.job_options.options)

    def _take_up(self, job: JobInfo) -> None:
        infos = list(job.groups)
        if len(infos) < len(self._own):  # some were added after the version that the server has
            specs = self._current_spec().groups
            with self._holding_weights() as weights:
                infos += [
                    self.session.add_group(specs[index], self._own.source_at(index, weights[index]))
                    for index in range(len(infos), len(self._own))
                ]
        self._groups.begin_again([info.options for info in infos[self._own.first :]])
        self._base, self._told = job.version, 0

    @recovers
    def info(self) -> JobInfo:
        """The job with its groups and parameters."""
        return self.session.info()

    @recovers
    def _read_state(self, fields: Sequence[str] = (), *of_what: str, into: StateSink) -> ReadStateResult:
        return self.session.read_state(fields, *of_what, into=into)

    def _pushed(
        self, push: Callable[[], PushResult], *, pull: Callable[[], object] | None, is_flush: bool
    ) -> PushResult:
        """The result of a push. If its gradient no longer counts, pulls instead; what it was added up with is kept.

        Without a `pull`, raises `RoundClosed` or `StaleGradient` if it came too late.
        """
        applied = False
        while is_flush or not self._is_behind:
            try:
                return push()
            except PushFoundApplied as found:
                return self._take_found(found.version, pull)
            except (RoundClosed, StaleGradient) as error:
                if pull is None:
                    raise
                pull()
                self.last = self._told_late(error)
                return self.last
            except (RolledBack, JobLost) as cause:
                applied = self.recover(cause)
                if applied:
                    break
        if pull is not None:
            pull()
        counts = applied and not self._asks_for_closures()
        self.last = self._found_applied(self._base) if counts else self._given_up(self._base)
        return self.last

    def _take_found(self, version: JobVersion, pull: Callable[[], object] | None) -> PushResult:
        """The result of a push that has been applied, whose own result is lost. Amid a search that is not enough."""
        if pull is not None:
            pull()
        self.last = self._given_up(version) if self._asks_for_closures() else self._found_applied(version)
        return self.last

    def _given_up(self, version: JobVersion) -> PushResult:
        logger.warning(
            "job %s: worker %s drops a gradient, because the server no longer has the weights that it was computed on",
            self.session.job,
            self.session.worker,
        )
        return UndonePush(version, 0, 0, False, accumulated=self._added_up())

    def _told_late(self, error: RoundClosed | StaleGradient) -> LatePush:
        self._late += 1
        if self._late.bit_count() == 1:  # a worker that is always late says so less and less often
            logger.warning(
                "job %s: a gradient of worker %s came too late and was dropped (%d so far); it goes on from version "
                "%d: %s",
                self.session.job,
                self.session.worker,
                self._late,
                self._base.version,
                error,
            )
        return LatePush(self._base, 0, 0, False, accumulated=self._added_up(), why=str(error))

    def _found_applied(self, version: JobVersion) -> PushResult:
        """The result of a push whose answer was lost with the server, which has it nevertheless."""
        return PushResult(version, version.version, 0, True, accumulated=self._added_up())

    def _added_up(self) -> int:
        return 0 if self.session.job_options.options.get("accumulate", 1) == 1 else self.session.pending()

    def _asks_for_closures(self) -> bool:
        return any(self.session.algorithm(name).needs_closure for name in {*self.algorithms})
