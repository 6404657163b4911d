"""A session: one worker's part in one job. Owns the epoch, the sequence of its pushes, and the lease.

Everything that is sent more than once is safe to send more than once; this is the only place that retries.
"""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeVar

from optd import environment
from optd.arrays import BATCH_BYTES, Array, FlatView, empty_arrays
from optd.heartbeat import Heartbeat
from optd.lock import OwnedLock
from optd.retry import with_retries
from optd.tls import TLS
from optd.transport.base import HEADER_BYTES, Known, Sink, Source, Transport
from optd.transport.grpc import GrpcTransport
from optd_wire.errors import (
    AlreadyRegistered,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    InvalidRequest,
    JobExists,
    NotFound,
    OptdError,
    SessionClosed,
    Unauthenticated,
    Unavailable,
    UnknownJob,
    UnknownWorker,
    Unreachable,
)
from optd_wire.names import check_name
from optd_wire.values import (
    Async,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupSummary,
    GroupUpdate,
    JobInfo,
    JobSpec,
    JobVersion,
    Membership,
    ParameterReport,
    Policy,
    PullResult,
    PushHeader,
    PushResult,
    ReadStateResult,
    Rejection,
    Sync,
    WorkerInfo,
    WriteStateHeader,
)

T = TypeVar("T")
logger = logging.getLogger("optd")

CONNECT_SECONDS = 10.0
CALL_SECONDS = 300.0
LEAVE_SECONDS = 2.0
# How long one call waits for a job that another worker is creating, before it asks again.
JOIN_WAIT_SECONDS = 5.0


@dataclass(slots=True)
class _Membership:
    """What it takes to leave a job; apart from the session, so that it can be done when the session is gone."""

    job: str
    worker: str
    transport: Transport
    process: int
    epoch: int = 0

    def end(self) -> None:
        """Leaves the job, if it was joined, and ends the connection. In a forked child it does nothing."""
        if os.getpid() != self.process:
            return
        if self.epoch:
            # Fenced, deleted or unreachable: then there is nothing to leave, or the lease runs out.
            with suppress(OptdError):
                self.transport.leave(self.job, self.worker, self.epoch, timeout=LEAVE_SECONDS)
        self.transport.close()


_open_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()
_leaving: list[threading.Thread] = []


def _leave_later(membership: _Membership) -> None:
    """For a session that nobody holds any more. The garbage collector must not wait for a server."""
    thread = threading.Thread(target=membership.end, name="optd-leave", daemon=True)
    _leaving.append(thread)
    thread.start()


@atexit.register
def _leave_all() -> None:
    """A program that ends without closing its sessions leaves their jobs at once, not when the leases run out."""
    for session in list(_open_sessions):
        session.close()
    for thread in _leaving:
        thread.join(LEAVE_SECONDS)


def connect(
    address: str | None = None,
    *,
    job: str | None = None,
    worker: str | None = None,
    token: str | None = None,
    tls: TLS | bool | None = None,
    timeout: float = CALL_SECONDS,
    connect_timeout: float = CONNECT_SECONDS,
    lane: Literal["auto", "grpc"] = "auto",
    policy: Policy | None = None,
) -> "Session":
    """Opens a session with a server, and makes sure that the server answers.

    Args:
        address: HOST:PORT; left out, OPTD_SERVER.
        job: The job's name; left out, OPTD_JOB, or "default".
        worker: This worker's name; left out, OPTD_WORKER, or host and process id. A name is held by one session at a
            time: a second one fences the first.
        token: What the server's --token-file accepts; left out, OPTD_TOKEN or OPTD_TOKEN_FILE.
        tls: Certificates, or True for the authorities that gRPC brings along; left out, OPTD_TLS_CA decides.
        timeout: Seconds that any one call may take, retries included. A step of a `sync` job waits for the other
            workers that long.
        connect_timeout: Seconds to try before `Unreachable` is raised.
        lane: How bulk bytes travel; "auto" takes the fastest that works.
        policy: When pushes become a step; counts for whoever creates the job. Left out, `Async()`.

    Raises:
        Unreachable: Nothing answers there.
        MissingToken, WrongToken: The server wants a token, or another one.
        InvalidName: A job's or worker's name is not one.
    """
    if lane not in ("auto", "grpc"):
        raise InvalidRequest(problem=f"lane must be 'auto' or 'grpc', got {lane!r}")
    address = environment.server(address)
    job = check_name("job", environment.job(job))
    worker = check_name("worker", environment.worker(worker))
    transport = GrpcTransport(address, token=environment.token(token), tls=environment.tls(tls))
    try:
        status = with_retries(transport.server_status, address=address, timeout=connect_timeout)
    except DeadlineExceeded:
        transport.close()
        problem = "it takes connections, but does not answer"
        raise Unreachable(address=address, seconds=f"{connect_timeout:g}", problem=problem) from None
    except OptdError:
        transport.close()
        raise
    return Session(
        transport,
        job=job,
        worker=worker,
        timeout=timeout,
        policy=policy or Async(),
        max_message_bytes=status.limits.max_message_bytes,
    )


class Session:
    """One worker's part in one job; opened by `connect`, and closed as a context manager or by `close`.

    May be used from several threads: its pushes follow one another. After a fork it belongs to the parent; using it
    in the child raises `ForkedSession`.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        job: str,
        worker: str,
        timeout: float,
        policy: Policy,
        max_message_bytes: int = 1 << 24,
    ) -> None:
        self.job = job
        self.worker = worker
        self.policy = policy
        self.timeout = timeout
        self.batch_bytes = min(BATCH_BYTES, max_message_bytes - HEADER_BYTES)
        """How many bytes of frames one message of this session may have."""
        self._transport = transport
        self._process = os.getpid()
        self._closed = False
        self._lock = OwnedLock()
        self._membership: Membership | None = None
        self._sequence = 0
        self._in_doubt = False
        self._version = JobVersion()
        self._heartbeat: Heartbeat | None = None
        self._leave = _Membership(job, worker, transport, self._process)
        self._forgotten = weakref.finalize(self, _leave_later, self._leave)
        self._forgotten.atexit = False  # then `_leave_all` closes what is open, and waits for it
        _open_sessions.add(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"version={self.version}"
        return f"<optd.Session {self.address} job={self.job!r} worker={self.worker!r} {state}>"

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return self._transport.address

    @property
    def version(self) -> int:
        """The job's version that this session last pulled."""
        return self._version.version

    @property
    def durable_version(self) -> int:
        """The last version that would survive a crash of the server, as of the last reply."""
        return self._version.durable_version

    def close(self) -> None:
        """Leaves the job and ends the connection. Safe to call twice, and in a forked child, where it does nothing."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._forgotten.detach()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._leave.end()

    # What anyone may ask

    def info(self) -> JobInfo:
        """The job with its groups and parameters."""
        return self._ask(lambda left: self._transport.get_job(self.job, left))

    def groups(self) -> tuple[GroupSummary, ...]:
        """The job's groups with their resolved options, a line each."""
        return self._ask(lambda left: self._transport.list_groups(self.job, left))

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that the job has seen."""
        return self._ask(lambda left: self._transport.list_workers(self.job, left))

    def rejections(self) -> tuple[dict[str, int], tuple[Rejection, ...]]:
        """What the job has refused: counts by reason, and the last ones."""
        return self._ask(lambda left: self._transport.list_rejections(self.job, left))

    def parameters(
        self, group: str, parameter: str = "", *, statistics: bool = True, bins: int = 16
    ) -> tuple[ParameterReport, ...]:
        """The parameters of a group, with statistics of weights, last gradient and state where asked."""
        return self._ask(
            lambda left: self._transport.inspect_group(
                self.job, group, left, parameter=parameter, statistics=statistics, bins=bins
            )[1]
        )

    def pull(self) -> dict[str, Array]:
        """The current weights of the whole job by parameter name, in arrays of their own; all of one version."""

        def attempt(left: float) -> dict[str, Array]:
            groups = self._transport.get_job(self.job, left).groups
            view = FlatView([group.parameters for group in groups])
            arrays = empty_arrays([group.parameters for group in groups])
            self._transport.pull(self.job, "", 0, None, lambda frame: view.write(frame, arrays), left)
            return {
                parameter.name: array
                for group, row in zip(groups, arrays, strict=True)
                for parameter, array in zip(group.parameters, row, strict=True)
            }

        return self._ask(attempt)

    def read_state(
        self, fields: Sequence[str] = (), group: str = "", parameter: str = "", *, into: Sink
    ) -> ReadStateResult:
        """Reads fields of one version: `weights`, `gradient`, states; all states where none is named."""
        return self._ask(
            lambda left: self._transport.read_state(
                self.job, tuple(fields), into, left, group=group, parameter=parameter
            )
        )

    def update_group(self, update: GroupUpdate) -> GroupOptions:
        """Changes options of a group, from the next step on; raises `OptionConflict` or what is wrong with a value."""
        options, _ = self._ask(lambda left: self._transport.update_group(self.job, update, left))
        return options

    # Taking part

    def register(self, spec: JobSpec, weights: Source) -> tuple[Membership, bool]:
        """Attaches to the job, or creates it with `weights`; returns what it is, and whether it was created.

        Where another worker is creating it, waits until it is whole; should that worker die, this one creates it.
        Raises `JobMismatch` where the job is another one, or what is wrong with the spec.
        """
        with self._lock:
            self._check_usable()
            if self._membership is not None:
                raise AlreadyRegistered(job=self.job)
            membership, created = self._attach_or_create(spec, weights)
            self._enter(membership)
            return membership, created

    def _attach_or_create(self, spec: JobSpec, weights: Source) -> tuple[Membership, bool]:
        deadline = time.monotonic() + self.timeout
        created = False
        while time.monotonic() < deadline:
            try:
                return self._join(spec, deadline), created
            except UnknownJob:
                try:
                    left = deadline - time.monotonic()
                    self._transport.create_job(spec, weights, left)
                    created = True
                except (JobExists, Unavailable):
                    # Somebody else was first, or the answer was lost: joining tells which.
                    time.sleep(0.01)
        raise DeadlineExceeded(
            rpc="Join",
            address=self.address,
            seconds=f"{self.timeout:g}",
            hint="; the job is still being created",
        )

    def _join(self, spec: JobSpec | None, deadline: float) -> Membership:
        def attempt(left: float) -> Membership:
            wait = min(JOIN_WAIT_SECONDS, left / 2)
            return self._transport.join(self.job, self.worker, spec, wait, left)

        left = max(deadline - time.monotonic(), 0.001)
        return with_retries(attempt, address=self.address, timeout=left)

    def _enter(self, membership: Membership) -> None:
        self._membership = membership
        self._leave.epoch = membership.epoch
        self._sequence = 0
        self._in_doubt = False
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(weakref.WeakMethod(self._renew), membership.lease_ms / 1000)

    def _renew(self) -> None:
        membership = self._membership
        if membership is not None:
            self._transport.renew_lease(self.job, self.worker, membership.epoch, timeout=membership.lease_ms / 1000)

    def add_group(self, spec: GroupSpec, weights: Source) -> GroupInfo:
        """Adds a group to the job, or finds that another worker has added it."""
        with self._lock:
            return self._ask(lambda left: self._transport.add_group(self.job, spec, weights, left))

    def push(self, gradients: Source, updates: tuple[GroupUpdate, ...], base: JobVersion) -> PushResult:
        """Pushes gradients that were computed on `base`; waits until they are part of a step."""
        return self._push(lambda header, left: self._transport.push(header, gradients, left), updates, base)

    def step(
        self, gradients: Source, updates: tuple[GroupUpdate, ...], base: JobVersion, weights: Sink
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls in one call."""
        pushed, pulled = self._push(
            lambda header, left: self._transport.step(header, gradients, weights, left), updates, base
        )
        self._version = pulled.version
        return pushed, pulled

    def _push(
        self,
        send: Callable[[PushHeader, float], T],
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
    ) -> T:
        """Sends one push under the next sequence number, again and again where the answer is lost."""
        with self._lock:
            self._check_usable()
            header = PushHeader(
                job=self.job,
                worker=self.worker,
                epoch=self._resolved_epoch(),
                sequence=self._sequence + 1,
                base_version=base.version,
                updates=updates,
                known_revision=base.revision,
            )
            # Until the answer is there, nobody knows whether this push counts. A refusal says that it does not,
            # unless it comes to a second attempt: then the first may have been applied.
            self._in_doubt = True
            attempts = 0

            def attempt(left: float) -> T:
                nonlocal attempts
                attempts += 1
                return send(header, left)

            try:
                result = self._ask(attempt)
            except (InvalidArgument, Unauthenticated, NotFound, Conflict):
                self._in_doubt = attempts > 1
                raise
            self._sequence += 1
            self._in_doubt = False
            return result

    def _resolved_epoch(self) -> int:
        """The epoch to push under. Where the last push's fate is unknown, a new one.

        Joining again fences the old epoch: the push in doubt has been applied, or never will be. So the next one
        can be neither taken for it nor be applied beside it later.
        """
        if self._membership is None:
            raise UnknownWorker(worker=self.worker, job=self.job)
        if self._in_doubt:
            self._enter(self._join(None, time.monotonic() + self.timeout))
        return self._membership.epoch

    def pull_into(self, weights: Sink, known: Known | None) -> PullResult:
        """Reads the current weights as this worker, unless they are `known`."""
        membership = self._membership
        epoch = membership.epoch if membership is not None else 0
        worker = self.worker if membership is not None else ""
        result = self._ask(lambda left: self._transport.pull(self.job, worker, epoch, known, weights, left))
        self._version = result.version
        return result

    def write_state(self, header: WriteStateHeader, numbers: Source) -> JobVersion:
        """Replaces state or weights of the job. Not retried: somebody may have stepped in between."""
        with self._lock:
            self._check_usable()
            return self._transport.write_state(header, numbers, self.timeout)

    @property
    def epoch(self) -> int:
        """The epoch that this session pushes under; 0 before it has registered."""
        return 0 if self._membership is None else self._membership.epoch

    def _ask(self, attempt: Callable[[float], T]) -> T:
        def usable_attempt(left: float) -> T:
            self._check_usable()
            return attempt(left)

        try:
            return with_retries(
                usable_attempt, address=self.address, timeout=self.timeout, on_first_loss=self._tell_of_loss
            )
        except DeadlineExceeded as error:
            # The caller wants to know the time that it gave, not what was left of it for the last attempt.
            hint = "; a step of a sync job waits for all its workers" if self._waits_for_others else ""
            seconds = f"{self.timeout:g}"
            raise DeadlineExceeded(rpc=error.values["rpc"], address=self.address, seconds=seconds, hint=hint) from None

    @property
    def _waits_for_others(self) -> bool:
        return self._membership is not None and isinstance(self._membership.job.policy, Sync)

    def _tell_of_loss(self, error: Unavailable) -> None:
        # The call goes on for minutes from here; somebody who waits for it wants to know why.
        logger.warning("job %s: %s; trying again for up to %g s", self.job, error, self.timeout)

    def _check_usable(self) -> None:
        self._lock.check()
        if self._closed:
            raise SessionClosed(job=self.job)
