"""Questions about a job that need no membership."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from optd.params.flat_view import Array, ArraysByGroup, FlatView, empty_arrays
from optd.params.groups import plain_option
from optd.params.pulled_rows import RowSink, read_ids
from optd.session.lock import OwnedLock
from optd.session.policy_argument import checked_policy
from optd.session.progress import Count, elements_of, showing
from optd.session.retry import with_retries
from optd.session.versions import Listening, Versions
from optd.session.weights import ANSWER_SECONDS, Weights, check_min_version
from optd.transport.lane import refuse_weights
from optd.transport.numbers import StateSink
from optd.transport.requests import Delivery, Names, OptionHistory, PullRequest, RowsRequest, names_of
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import (
    DeadlineExceeded,
    OptdError,
    ResourceExhausted,
    SessionClosed,
    UnknownAlgorithm,
    UnknownParameter,
)
from optd_wire.values import (
    AlgorithmInfo,
    GroupInfo,
    GroupOptions,
    GroupSummary,
    GroupUpdate,
    JobInfo,
    JobOptions,
    JobUpdate,
    ParameterInfo,
    ParameterReport,
    Policy,
    PullResult,
    ReadStateResult,
    Rejection,
    WorkerInfo,
)

T = TypeVar("T")
logger = logging.getLogger("optd")


class Inquiry:
    """Questions to a server about one job, repeated until they are answered or `timeout` seconds have passed."""

    def __init__(self, transport: ServerCalls, *, job: str, timeout: float) -> None:
        self.job = job
        self.timeout = timeout
        self._transport = transport
        self._process = os.getpid()
        self._lock = OwnedLock()
        self._closed = False
        self._refused = 0
        """How many calls a full server has refused at first."""
        self._told_full = False
        self._progress = False
        """Whether progress of long transfers is shown."""

    def _showing(self, what: str, elements: int) -> AbstractContextManager[Count]:
        return showing(f"{what}, job {self.job}", elements, enabled=self._progress)

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return self._transport.address

    def info(self) -> JobInfo:
        """The job with its groups and parameters."""
        return self._ask(lambda left: self._transport.get_job(self.job, left))

    def groups(self) -> tuple[GroupSummary, ...]:
        """The job's groups with their resolved options."""
        return self._ask(lambda left: self._transport.list_groups(self.job, left))

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that the job has seen."""
        return self._ask(lambda left: self._transport.list_workers(self.job, left))

    def rejections(self) -> tuple[dict[str, int], tuple[Rejection, ...]]:
        """What the job has refused: counts by reason, and the last refusals."""
        return self._ask(lambda left: self._transport.list_rejections(self.job, left))

    def option_changes(self, group: str = "") -> OptionHistory:
        """The changes of options of a group, or of the job, since it was created, with their versions.

        A tuple, oldest first: the last 256 changes, and the last one of each option. Its `forgotten` counts the others.
        Raises `UnknownGroup`.
        """
        return self._ask(lambda left: self._transport.list_option_changes(self.job, group, left))

    def parameters(
        self, group: str, parameter: str = "", *, statistics: bool = True, bins: int = 16
    ) -> tuple[ParameterReport, ...]:
        """The parameters of a group; with `statistics` also those of weights, last gradient and state."""
        return self._ask(
            lambda left: self._transport.inspect_group(
                self.job, group, left, parameter=parameter, statistics=statistics, bins=bins
            )[1]
        )

    def pull(
        self,
        *,
        groups: Names = (),
        parameters: Names = (),
        weights: str = "",
        min_version: int = 0,
        timeout: float | None = None,
    ) -> Weights:
        """The current weights by parameter name, in new arrays, all of one version, which is their `version`.

        Reads the whole job, or the named groups and parameters. `weights="ema"` or `"swa"` reads that average instead.
        With `min_version` waits until the job has come to that version. Needs no registration: who only reads is no
        worker.

        Raises:
            UnknownGroup, UnknownParameter, UnknownAverage, EmptyAverage: There is no such thing to read.
            DeadlineExceeded: It took longer than `timeout` seconds, by default the session's. If the job has not come
                to `min_version`, the message has both versions.
        """
        request = PullRequest(
            self.job,
            groups=names_of(groups),
            parameters=names_of(parameters),
            weights=weights,
            min_version=check_min_version(min_version),
        )

        def attempt(left: float) -> Weights:
            infos: tuple[GroupInfo, ...] = ()
            arrays: list[list[Array]] = []

            def into(job: JobInfo) -> ArraysByGroup:
                nonlocal infos, arrays
                infos, arrays = job.groups, empty_arrays([info.parameters for info in job.groups])
                return arrays

            version = self._read(request, into, left).version
            found = {
                parameter.name: array
                for info, row in zip(infos, arrays, strict=True)
                for parameter, array in zip(info.parameters, row, strict=True)
                if _is_asked_for(request, info, parameter)
            }
            return Weights(found, version.version)

        return self._ask(attempt, timeout)

    def pull_arrays(self, request: PullRequest, into: Callable[[JobInfo], ArraysByGroup]) -> PullResult:
        """Reads weights into arrays of the caller's: `into` gives them for the job as it is now.

        They hold weights of one version when this returns, and anything if it raises.
        """
        return self._ask(lambda left: self._read(request, into, left))

    def _read(self, request: PullRequest, into: Callable[[JobInfo], ArraysByGroup], seconds: float) -> PullResult:
        until = time.monotonic() + seconds
        if request.min_version:
            self._wait(request.min_version, seconds)  # first, as the job may get groups meanwhile
        job = self._transport.get_job(self.job, _left(until))
        view, arrays = FlatView([info.parameters for info in job.groups]), into(job)
        with self._showing("pulling", elements_of(job.groups)) as count:
            return self._transport.pull(request, count.sink(lambda frames: view.write(frames, arrays)), _left(until))

    def wait(self, version: int, timeout: float | None = None) -> int:
        """Blocks until the job has come to a version; returns the one that it is at.

        Needs no registration. Raises `DeadlineExceeded`, with both versions, if that takes longer than `timeout`
        seconds, by default the session's, or `UnknownJob` if the job is deleted meanwhile.
        """
        version = check_min_version(version)
        return self._ask(lambda left: self._wait(version, left), timeout, doing=f"waiting for version {version}")

    def _wait(self, version: int, seconds: float) -> int:
        request = PullRequest(self.job, delivery=Delivery(none=True), min_version=version, wait_seconds=seconds)
        return self._transport.pull(request, refuse_weights, seconds + ANSWER_SECONDS).version.version

    def versions(self, known: int | None = None) -> Versions:
        """An iterator over the job's versions: the current one, and then the newest one whenever it has changed.

        For those who follow a training. A slow reader skips versions. The current version is left out if it is `known`.
        Needs no registration. Goes on by itself after a lost connection or a restart of the server; raises `UnknownJob`
        when the job is deleted.

            for version in session.versions():
                weights = session.pull()
        """
        self._check_usable()
        return Versions(
            Listening(
                lambda known: self._transport.watch_versions(self.job, known),
                self._check_usable,
                self.address,
                self.timeout,
                self._tell_of_loss,
                None if known is None else check_min_version(known),
            )
        )

    def pull_rows(self, parameter: str, ids: Any, *, weights: str = "") -> Array:
        """Rows of a parameter's current weights, all of one version, in a new array of shape (n, *shape[1:]).

        `ids` are n integers in any order, repeats allowed; `weights` is that of `pull`. Raises `UnknownParameter`,
        `RowOutOfRange`, `UnknownAverage`, `EmptyAverage`, or `NotAnArray` if the ids are no list of integers. The time
        grows with the number of rows and of the job's parameters.
        """
        infos = [info for group in self.info().groups for info in group.parameters if info.name == parameter]
        if not infos:
            raise UnknownParameter(where=f"job {self.job!r}", parameter=parameter)
        return self.read_rows(parameter, infos[0].shape, infos[0].dtype, ids, weights=weights)

    def read_rows(
        self,
        parameter: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        ids: Any,
        *,
        encoding: str = "",
        weights: str = "",
    ) -> Array:
        """As `pull_rows`, for a parameter of known shape and dtype; `encoding` is how messages carry the rows."""
        wanted = read_ids(ids, parameter, shape)
        out = np.empty((wanted.size, *shape[1:]), dtype)
        request = RowsRequest(self.job, parameter, wanted, encoding, weights)

        def attempt(left: float) -> None:
            sink = RowSink(parameter, shape[0], wanted, out)
            self._transport.pull_rows(request, sink.write, left)
            sink.close()

        self._ask(attempt)
        return out

    def read_state(
        self, fields: Sequence[str] = (), group: str = "", parameter: str = "", *, into: StateSink
    ) -> ReadStateResult:
        """Reads fields of one version: "weights", "gradient" or states; all states if no field is named.

        `into` gets the result, which tells what will come, and returns what takes the frames.
        """
        return self._ask(
            lambda left: self._transport.read_state(
                self.job, tuple(fields), into, left, group=group, parameter=parameter
            )
        )

    def algorithm(self, name: str) -> AlgorithmInfo:
        """The options, states and conditions of an algorithm; raises `UnknownAlgorithm`."""
        return find_algorithm(self.algorithms(), name)

    def algorithms(self) -> Sequence[AlgorithmInfo]:
        """All algorithms of the server, with their options, states and conditions."""
        return self._ask(self._transport.list_algorithms)

    def update_group(self, update: GroupUpdate) -> GroupOptions:
        """Changes options of a group, from the next step on; raises `OptionConflict` or what is wrong with a value."""
        options, _ = self._ask(lambda left: self._transport.update_group(self.job, update, left))
        return options

    def set_options(self, *, expected_revision: int | None = None, **options: Any) -> JobOptions:
        """Changes options of the job as a whole, such as `clip_norm`, from the next step on; returns all of them.

        `info().options` has their values, with the version since which they hold, and their revision. With that
        revision as `expected_revision`, raises `JobOptionConflict` if the options have changed since. Raises
        `UnknownOption`, `OptionOutOfRange` or `InvalidOption`.
        """
        given = {name: plain_option(value) for name, value in options.items()}
        update = JobUpdate(self.job, given, expected_revision)
        return self._ask(lambda left: self._transport.update_job(update, left))[0]

    def set_policy(self, policy: Policy) -> Policy:
        """Changes when pushes become a step, at one version; returns the policy that the job has now.

        The new policy also decides about pushes that wait for their round. Raises `InvalidPolicy` for a value out of
        range, or `MemoryExceeded`.
        """
        return self._ask(lambda left: self._transport.set_policy(self.job, checked_policy(policy), left))[0]

    def pending(self) -> int:
        """How many pushes, or rounds, the job has accumulated since its last step."""
        return self._ask(self._pending)

    def _pending(self, left: float) -> int:
        jobs = self._transport.list_jobs(left)
        return next((found.gradients.accumulated for found in jobs if found.name == self.job), 0)

    def _ask(self, attempt: Callable[[float], T], timeout: float | None = None, doing: str = "") -> T:
        """Makes a call with retries. If it takes too long, the error names what it was `doing`; default: the RPC."""
        timeout = self.timeout if timeout is None else timeout

        def usable_attempt(left: float) -> T:
            self._check_usable()
            return attempt(left)

        refused = self._refused
        try:
            answer = with_retries(
                usable_attempt, address=self.address, timeout=timeout, on_first_loss=self._tell_of_loss
            )
            if self._refused == refused:
                self._told_full = False
            return answer
        except DeadlineExceeded as error:
            # The message names the time that the caller gave, not what was left of it for the last attempt.
            seconds = f"{timeout:g}"
            hint = error.values["hint"] or self._why_late()
            rpc = doing or error.values["rpc"]
            raise DeadlineExceeded(rpc=rpc, address=self.address, seconds=seconds, hint=hint) from None

    def _why_late(self) -> str:
        return ""

    def _tell_of_loss(self, error: OptdError) -> None:
        # The call may go on for minutes from here; the log tells why.
        if isinstance(error, ResourceExhausted):
            self._refused += 1
            if not self._told_full:  # once, until a call gets through at first again
                self._told_full = True
                logger.warning("job %s: the server at %s is full, so this waits: %s", self.job, self.address, error)
            return
        logger.warning("job %s: %s; trying again for up to %g s", self.job, error, self.timeout)

    def _check_usable(self) -> None:
        self._lock.check()
        if self._closed:
            raise SessionClosed(job=self.job)


def find_algorithm(known: Sequence[AlgorithmInfo], name: str) -> AlgorithmInfo:
    """The algorithm of this name among those that a server has; raises `UnknownAlgorithm` with the nearest."""
    names = [algorithm.name for algorithm in known]
    if name not in names:
        # Names of torch's classes, such as AdamW and SparseAdam, differ in case and underscores alone.
        folded = {known_name.replace("_", ""): known_name for known_name in names}
        close = get_close_matches(name.lower().replace("_", ""), folded, n=1)
        advice = f"the nearest is {folded[close[0]]!r}" if close else f"there are {', '.join(names)}"
        raise UnknownAlgorithm(algorithm=name, advice=advice)
    return known[names.index(name)]


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.001)


def _is_asked_for(request: PullRequest, group: GroupInfo, parameter: ParameterInfo) -> bool:
    everything = not request.groups and not request.parameters
    return everything or group.options.group in request.groups or parameter.name in request.parameters
