"""How a session takes part in its job: it joins, keeps its lease, chooses a lane, and leaves."""

import logging
import os
import secrets
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from optd.params.flat_view import BATCH_BYTES
from optd.session.acknowledged import Acknowledged
from optd.session.departure import LEAVE_SECONDS, Departure, leave_later, note_closed, open_sessions
from optd.session.heartbeat import Heartbeat
from optd.session.inquiry import Inquiry
from optd.session.join import IfExists, take_part
from optd.session.progress import elements_of
from optd.session.retry import with_retries
from optd.session.round_watch import RoundWatch
from optd.transport.encoding import MessageEncoding
from optd.transport.lane import Lane, Member, SharedBuffers
from optd.transport.lane_choice import LaneName, first_lane, messages_only, open_lane
from optd.transport.numbers import HEADER_BYTES, Source
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import (
    AlreadyRegistered,
    JobLost,
    LeaseExpired,
    OptdError,
    RolledBack,
    SharedMemoryUnavailable,
    StaleEpoch,
    Unavailable,
    UnknownJob,
    UnknownWorker,
)
from optd_wire.values import (
    GroupOptions,
    JobInfo,
    JobOptions,
    JobSpec,
    JobVersion,
    Membership,
    Options,
    Policy,
    RoundInfo,
    Sync,
)

T = TypeVar("T")
logger = logging.getLogger("optd")

Settle = Callable[[bool, Sequence[GroupOptions]], None]
"""Takes whether a push was applied, and, if that was learnt by joining again, the options of all groups as of then."""

CALL_SECONDS = 300.0
ROUND_SECONDS = 2.0
"""How long a question about the open rounds may take: what it is for is over by then."""
NOT_RECREATED = ", or pass recreate=True to optd.connect() to go on from the worker's weights in a new job"


class MemberSession(Inquiry, ABC):
    """The membership of a session, without its pushes and pulls; see `Session`.

    Owns the epoch, the lease, the lane and the connection.
    """

    def __init__(
        self,
        transport: ServerCalls,
        *,
        job: str,
        worker: str,
        timeout: float,
        policy: Policy | None = None,
        options: Options | None = None,
        max_message_bytes: int = 1 << 24,
        lane: LaneName = "grpc",
        wire: MessageEncoding | None = None,
        if_exists: IfExists = "attach",
        ephemeral: bool = False,
        shared: bool = True,
        progress: bool = False,
        durable: bool = False,
        recreate: bool = False,
    ) -> None:
        super().__init__(transport, job=job, timeout=timeout)
        self.worker = worker
        self.policy = policy
        """The policy that the job must have. None: any; `Async()` if this session creates the job."""
        self.if_exists: IfExists = if_exists
        self.ephemeral = ephemeral
        """Whether the job ends with its last worker, if this session creates it."""
        self.shared = shared
        """Whether workers of other processes may join the job: a person or a launcher has named it."""
        self.options: Options = options or {}
        """The options of the job as a whole, if this session creates it."""
        self.job_options = JobOptions()
        """The options of the job as a whole, as far as this session has learnt them."""
        self.wire = wire or MessageEncoding.of("float32")
        self.batch_bytes = min(BATCH_BYTES, max_message_bytes - HEADER_BYTES)
        """The largest size of the frames in one message, in bytes."""
        self.durable = durable
        """Whether each push waits until it survives a power cut."""
        self.recreate = recreate
        """Whether a job that the server has lost is created anew."""
        self._found_at = 0.0
        """When the server last answered as one that has the job, in seconds of the monotonic clock."""
        self._progress = progress
        self._elements = 0
        self._stepped = False
        """Whether a step has been made here: only the first one takes long, and is shown."""
        self._version = JobVersion()
        """Where the job stood when its weights were last pulled here."""
        self._wanted_lane = lane
        self._lane = first_lane(transport)
        self._has_chosen = True
        """Whether the lane is the one to stay with; not if the server was away when it was chosen."""
        self._membership: Membership | None = None
        self._sequence = 0
        """The number of the last push under this epoch that counts."""
        self._in_doubt: Settle | None = None
        """The callback of the last push while the fate of that push is unknown; else None."""
        self._acknowledged = Acknowledged()
        self._added_up = 0
        self._fenced = 0
        """The epoch that another session of this worker's name has fenced."""
        self._heartbeat: Heartbeat | None = None
        self._session_id = secrets.token_hex(16)
        """Tells a repeated call of this session from one of another session with the worker's name."""
        self._round_watch = RoundWatch(job, worker, weakref.WeakMethod(self._open_rounds), timeout, tells=progress)
        self._departure = Departure(job, worker, transport, self._process)
        self._forgotten = weakref.finalize(self, leave_later, self._departure)
        self._forgotten.atexit = False  # at exit sessions are closed by `departure`, which waits for them
        open_sessions.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"version={self.version} lane={self.lane}"
        return f"<optd.Session {self.address} job={self.job!r} worker={self.worker!r} {state}>"

    @property
    def version(self) -> int:
        """The job's version that this session last pulled."""
        return self._version.version

    @property
    def durable_version(self) -> int:
        """The last version that would survive a crash of the server, as of the last reply; 0 if it keeps nothing."""
        return self._version.durable_version

    @property
    def lane(self) -> str:
        """How numbers travel: "grpc" or "shm". Decided when an optimizer registers; until then "grpc"."""
        return self._lane.name

    @property
    def shared_memory(self) -> SharedBuffers | None:
        """The memory that this session shares with the server; None if numbers travel in messages."""
        return self._lane.buffers

    @property
    def epoch(self) -> int:
        """The epoch that this session pushes under; 0 before it has registered."""
        return 0 if self._membership is None else self._membership.epoch

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor of another process."""
        return not self._closed and os.getpid() == self._process

    @property
    def in_doubt(self) -> bool:
        """Whether the fate of the last push is unknown. The server may then still be reading it."""
        return self._in_doubt is not None

    def close(self) -> None:
        """Leaves the job and ends the connection. Safe to call twice; does nothing in a forked child."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        if self._added_up and (added_up := self._added_up_now()):
            logger.warning(
                "job %s: worker %s leaves while gradients are added up that no step has taken (pushes or rounds: %d); "
                "call flush() before you close, or from another worker",
                self.job,
                self.worker,
                added_up,
            )
        self._forgotten.detach()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._round_watch.stop()
        self._departure.leave()
        note_closed()

    def _added_up_now(self) -> int:
        """How many pushes, or rounds, wait for a step: others may have made it since the last answer.

        That answer's number if the server cannot be asked.
        """
        try:
            return self._pending(LEAVE_SECONDS)
        except OptdError:
            return self._added_up

    def register(self, spec: JobSpec, weights: Source) -> tuple[Membership, bool]:
        """Joins the job, or creates it with `weights`; returns the membership, and whether the job was created here.

        `if_exists` says what to do if the job exists. If another worker is creating it, blocks until it is complete;
        if that worker dies, creates it. Raises `JobMismatch` if the job differs from `spec`, `JobExists` or `JobInUse`
        if `if_exists` forbids it, or what is wrong with the spec.
        """
        with self._lock:
            self._check_usable()
            if self._membership is not None:
                raise AlreadyRegistered(job=self.job)
            with self._showing("registering", elements_of(spec.groups)) as count:
                weights = count.source(weights)
                membership, created = take_part(
                    self._transport,
                    spec,
                    weights,
                    self.worker,
                    self.timeout,
                    self.if_exists,
                    session_id=self._session_id,
                    messages_only=messages_only(self._wanted_lane, self.wire, spec.groups),
                )
                try:
                    self._enter(membership)
                except BaseException:
                    self._membership = None  # no optimizer comes of it, and the caller may try again
                    raise
            return membership, created

    def create_again(self, spec: JobSpec, weights: Source) -> tuple[Membership, bool]:
        """Creates a job that the server has lost, or attaches to what another worker has created; as `register`.

        Pushes of before count no longer, and the sequence begins anew.
        """
        with self._lock:
            self._check_usable()
            self._lane.keep()
            is_in_messages = messages_only(self._wanted_lane, self.wire, spec.groups)
            membership, created = take_part(
                self._transport,
                spec,
                weights,
                self.worker,
                self.timeout,
                "attach",
                session_id=self._session_id,
                messages_only=is_in_messages,
            )
            self._forget_pushes()
            self._enter(membership)
            return membership, created

    @abstractmethod
    def _forget_pushes(self) -> None:
        """Forgets pushes that the server has lost with their job."""

    def _ask(self, attempt: Callable[[float], T], timeout: float | None = None, doing: str = "") -> T:
        try:
            return super()._ask(attempt, timeout, doing)
        except (UnknownJob, UnknownWorker) as error:
            raise self._explained(error) from None

    def _explained(self, error: OptdError) -> OptdError:
        """What it means that the server does not know the job or this worker, or has another job of that name.

        `JobLost` or `RolledBack` if the server was restarted since it last had the job; else the error itself.
        """
        membership = self._membership
        if membership is None or self._found_at >= self._restarted_at():
            return error
        if isinstance(error, UnknownWorker) and (job := self._same_job(membership)) is not None:
            why = f"the server went back to version {job.version.version}, which is older than its part in the job"
            return RolledBack(worker=self.worker, job=self.job, epoch=membership.epoch, why=why)
        advice = "; the optimizer's next step or pull creates the job anew" if self.recreate else NOT_RECREATED
        return JobLost(address=self.address, job=self.job, worker=self.worker, advice=advice)

    def _restarted_at(self) -> float:
        """When the server process was started, in seconds of this process's monotonic clock."""

        def attempt(left: float) -> float:
            status = self._transport.server_status(left)
            return time.monotonic() - status.uptime_ms / 1000

        return with_retries(attempt, address=self.address, timeout=self.timeout)

    def _same_job(self, membership: Membership) -> JobInfo | None:
        """The job that was joined, if the server has it."""
        with suppress(UnknownJob):
            job = with_retries(
                lambda left: self._transport.get_job(self.job, left), address=self.address, timeout=self.timeout
            )
            return job if job.id == membership.job.id else None
        return None

    def _note_found(self) -> None:
        """Notes that the server has just answered as one that has the job."""
        self._found_at = time.monotonic()

    def set_options(self, *, expected_revision: int | None = None, **options: Any) -> JobOptions:
        """As `Inquiry.set_options`; remembers them for a job that has to be created anew."""
        self.job_options = super().set_options(expected_revision=expected_revision, **options)
        return self.job_options

    def _enter(self, membership: Membership) -> None:
        self._membership = membership
        self._note_found()
        self.job_options = membership.job.options
        self._elements = elements_of(membership.job.groups)
        self._departure.epoch = membership.epoch
        self._sequence = 0
        self._choose_lane(membership)
        if self._heartbeat is None:
            self._departure.renewals = self._transport.beside()
            self._heartbeat = Heartbeat(weakref.WeakMethod(self._renew), membership.lease_ms / 1000)

    def _renew(self) -> None:
        membership, renewals = self._membership, self._departure.renewals
        if membership is None or renewals is None or membership.epoch == self._fenced:
            return
        try:
            renewals.renew_lease(self.job, self.worker, membership.epoch, timeout=membership.lease_ms / 2000)
        except LeaseExpired:
            raise
        except StaleEpoch:
            self._fenced = membership.epoch  # another session has the name: the answer will stay the same
            raise
        self._note_found()

    def _choose_lane(self, membership: Membership) -> None:
        """Opens the lane for this epoch; raises `SharedMemoryUnavailable` if only shared memory was asked for."""
        self._lane.close()
        self._departure.lane = self._lane = first_lane(self._transport)
        member = Member(self.job, self.worker, membership.epoch)
        self._has_chosen = False
        with suppress(Unavailable):  # numbers travel in messages until the server can be asked again
            self._departure.lane = self._lane = open_lane(
                self._transport, member, membership.job.groups, self._wanted_lane, self.wire, self.timeout
            )
            self._has_chosen = True

    def _on_lane(self, send: Callable[[Lane], T]) -> T:
        """Sends on the lane; if the server has given up its shared memory, opens another lane and sends again.

        That is safe: the server refuses before it reads, or the push has been applied and its repeat counts once.
        """
        try:
            return send(self._lane)
        except SharedMemoryUnavailable:
            if self._membership is None:
                raise
            self._choose_lane(self._membership)
            return send(self._lane)

    def other_workers(self) -> tuple[str, ...]:
        """The names of the other workers that hold a lease now."""
        return tuple(worker.name for worker in self.workers() if worker.active and worker.name != self.worker)

    def _open_rounds(self) -> Sequence[RoundInfo]:
        return self._transport.list_rounds(self.job, ROUND_SECONDS)

    def _why_late(self) -> str:
        """The hint of an error about a call that took too long."""
        names = self._round_watch.waited_for()
        if names:
            return f"; its round waited for {names}"
        waits = self._membership is not None and isinstance(self._membership.job.policy, Sync)
        return "; a step of a sync job waits for all its workers" if waits else ""
