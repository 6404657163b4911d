"""A session: one worker's part in one job. Owns the epoch, the sequence of its pushes, the lease and the lane.

Everything that is sent more than once is safe to send more than once; sessions are the only ones that retry.
"""

import logging
import os
import secrets
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import isfunction
from types import TracebackType
from typing import TypeVar

from optd.params.flat_view import BATCH_BYTES
from optd.session.departure import Departure, leave_later, open_sessions
from optd.session.heartbeat import Heartbeat
from optd.session.inquiry import Inquiry
from optd.session.join import IfExists, join, take_part
from optd.session.progress import elements_of
from optd.session.push_settings import PLAIN_PUSH, PushSettings
from optd.transport.encoding import MessageEncoding
from optd.transport.lane import Lane, Member, SharedBuffers
from optd.transport.lane_choice import LaneName, first_lane, messages_only, open_lane
from optd.transport.numbers import HEADER_BYTES, Sink, Source, StepSink
from optd.transport.requests import Known, Names, PullRequest, names_of
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import (
    AlreadyRegistered,
    Conflict,
    InvalidArgument,
    NotFound,
    SharedMemoryUnavailable,
    Unauthenticated,
    UnknownWorker,
)
from optd_wire.values import (
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobSpec,
    JobVersion,
    Membership,
    Options,
    Policy,
    PullResult,
    PushHeader,
    PushResult,
    Sync,
    WriteStateHeader,
)

T = TypeVar("T")
logger = logging.getLogger("optd")

Settle = Callable[[bool, Sequence[GroupOptions]], None]
"""Is told whether a push was applied; and where that was unknown until the worker joined again, the options then."""

CALL_SECONDS = 300.0


class Session(Inquiry):
    """One worker's part in one job; opened by `connect`, and closed as a context manager or by `close`.

    May be used from several threads: its pushes follow one another. After a fork it belongs to the parent; using it
    in the child raises `ForkedSession`.
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
    ) -> None:
        super().__init__(transport, job=job, timeout=timeout)
        self.worker = worker
        self.policy = policy
        """The policy that the job is to have; None: whatever it has, `Async()` should it be created by this session."""
        self.if_exists: IfExists = if_exists
        self.ephemeral = ephemeral
        """Whether the job ends with its workers, should it be created by this session."""
        self.shared = shared
        """Whether workers of other processes may take part in the job: somebody has named it, or a launcher."""
        self.options: Options = options or {}
        """The options of the job as a whole, should it be created by this session."""
        self.wire = wire or MessageEncoding.of("float32")
        self.batch_bytes = min(BATCH_BYTES, max_message_bytes - HEADER_BYTES)
        """How many bytes of frames one message of this session may have."""
        self._progress = progress
        self._elements = 0
        self._stepped = False
        """Whether a step has been made here: only the first one is long, and shown."""
        self._wanted_lane = lane
        self._lane = first_lane(transport)
        self._membership: Membership | None = None
        self._sequence = 0
        self._added_up = 0
        self._in_doubt: Settle | None = None
        self._version = JobVersion()
        self._heartbeat: Heartbeat | None = None
        self._departure = Departure(job, worker, transport, self._process)
        self._forgotten = weakref.finalize(self, leave_later, self._departure)
        self._forgotten.atexit = False  # what is open then is closed, and waited for
        open_sessions.add(self)

    def __enter__(self) -> "Session":
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
        """The last version that would survive a crash of the server, as of the last reply."""
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
    def in_doubt(self) -> bool:
        """Whether nobody knows yet what became of the last push: the server may still be reading it."""
        return self._in_doubt is not None

    @property
    def epoch(self) -> int:
        """The epoch that this session pushes under; 0 before it has registered."""
        return 0 if self._membership is None else self._membership.epoch

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor of another process."""
        return not self._closed and os.getpid() == self._process

    def close(self) -> None:
        """Leaves the job and ends the connection. Safe to call twice, and in a forked child, where it does nothing."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        if self._added_up:
            logger.warning(
                "job %s: worker %s leaves while gradients are added up that no step has taken (pushes or rounds: %d); "
                "call flush() before you close, or from another worker",
                self.job,
                self.worker,
                self._added_up,
            )
        self._forgotten.detach()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._departure.leave()

    # Joining

    def register(self, spec: JobSpec, weights: Source) -> tuple[Membership, bool]:
        """Attaches to the job, or creates it with `weights`; returns what it is, and whether it was created.

        `if_exists` says what to do where the job exists. Where another worker is creating it, waits until it is whole;
        should that worker die, this one creates it. Raises `JobMismatch` where the job is another one, `JobExists` or
        `JobInUse` where there must be none and is one, or what is wrong with the spec.
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
                    messages_only=messages_only(self._wanted_lane, self.wire, spec.groups),
                )
                try:
                    self._enter(membership)
                except BaseException:
                    self._membership = None  # there is no optimizer, and there may be another attempt
                    raise
            return membership, created

    def _enter(self, membership: Membership) -> None:
        self._membership = membership
        self._elements = elements_of(membership.job.groups)
        self._departure.epoch = membership.epoch
        self._sequence = 0
        self._choose_lane(membership)
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(weakref.WeakMethod(self._renew), membership.lease_ms / 1000)

    def _renew(self) -> None:
        membership = self._membership
        if membership is not None:
            self._transport.renew_lease(self.job, self.worker, membership.epoch, timeout=membership.lease_ms / 1000)

    def _choose_lane(self, membership: Membership) -> None:
        """Shares memory with the server, where that is wanted and can be; raises where it must be and cannot."""
        self._lane.close()
        self._departure.lane = self._lane = first_lane(self._transport)
        member = Member(self.job, self.worker, membership.epoch)
        self._departure.lane = self._lane = open_lane(
            self._transport, member, membership.job.groups, self._wanted_lane, self.wire, self.timeout
        )

    def add_group(self, spec: GroupSpec, weights: Source) -> GroupInfo:
        """Adds a group to the job, or finds that another worker has added it."""
        with self._lock:
            info = self._ask(lambda left: self._transport.add_group(self.job, spec, weights, left))
            if self._membership is not None:
                job = self._ask(lambda left: self._transport.get_job(self.job, left))
                self._membership = replace(self._membership, job=job)
                if self.shared_memory is not None:
                    self._choose_lane(self._membership)
            return info

    # Taking part

    def push(
        self,
        gradients: Source,
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
        settle: Settle,
        settings: PushSettings = PLAIN_PUSH,
    ) -> PushResult:
        """Pushes gradients that were computed on `base`; waits until they are part of a step.

        `settle` is told whether the push was applied: now, or where nobody can know, once the next push or `find_out`
        has found out.
        """
        pushed = self._push(
            lambda lane, header, left: lane.push(header, gradients, left), updates, base, settle, settings
        )
        self._added_up = pushed.accumulated
        return pushed

    def step(
        self,
        gradients: Source,
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
        settle: Settle,
        weights: StepSink,
        in_place: Sink | None,
        encoding: str,
        settings: PushSettings = PLAIN_PUSH,
    ) -> tuple[PushResult, PullResult]:
        """As `push`, and pulls in the same call: `in_place` is given what may stay where it is, `weights` the rest.

        `encoding` is how messages carry the weights, empty for unchanged.
        """
        with self._showing("first step", 0 if self._stepped else 2 * self._elements) as count:
            if not self._stepped and isfunction(gradients):  # others say by their class what they are
                gradients, weights = count.source(gradients), count.sink(weights)
            pushed, pulled = self._push(
                lambda lane, header, left: lane.step(
                    header, gradients, weights, left, in_place=in_place, encoding=encoding
                ),
                updates,
                base,
                settle,
                settings,
            )
        self._stepped = True
        self._version = pulled.version
        self._added_up = pushed.accumulated
        return pushed, pulled

    def _push(
        self,
        send: Callable[[Lane, PushHeader, float], T],
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
        settle: Settle,
        settings: PushSettings,
    ) -> T:
        """Sends one push under the next sequence number, again and again where the answer is lost."""
        with self._lock:
            self._check_usable()
            epoch = self._resolved_epoch()
            attempts = 0

            def attempt(left: float) -> T:
                nonlocal attempts, epoch
                attempts += 1
                header = PushHeader(
                    job=self.job,
                    worker=self.worker,
                    epoch=epoch,
                    sequence=self._sequence + 1,
                    base_version=base.version,
                    updates=updates,
                    known_revision=base.revision,
                    weight=settings.weight,
                    loss_scale=settings.loss_scale,
                    loss=settings.loss,
                    begins=settings.begins,
                    flush=settings.flush,
                    norms=settings.norms,
                )
                return self._on_lane(lambda lane: send(lane, header, left))

            # Until the answer is there, nobody knows whether this push counts. A refusal says that it does not,
            # unless it comes to a second attempt: then the first may have been applied.
            self._in_doubt = settle
            try:
                result = self._ask(attempt)
            except (InvalidArgument, Unauthenticated, NotFound, Conflict):
                if attempts == 1:
                    self._in_doubt = None
                    settle(False, ())
                raise
            self._sequence += 1
            self._in_doubt = None
            settle(True, ())
            return result

    def _on_lane(self, send: Callable[[Lane], T]) -> T:
        """Sends on the lane; where the server has given shared memory up, on another one.

        It says so before anything else; or the weights cannot be had, and a push that is sent again counts once.
        """
        try:
            return send(self._lane)
        except SharedMemoryUnavailable:
            if self._membership is None:
                raise
            self._choose_lane(self._membership)
            return send(self._lane)

    def find_out(self) -> None:
        """Settles the last push, if nobody knows what became of it; raises what keeps the server from telling."""
        with self._lock:
            self._check_usable()
            self._resolved_epoch()

    def _resolved_epoch(self) -> int:
        """The epoch to push under. Where the last push's fate is unknown, a new one.

        Joining again fences the old epoch: the push in doubt has been applied, which the answer tells, or never will
        be. So the next one can be neither taken for it nor be applied beside it later.
        """
        membership = self._membership
        if membership is None:
            raise UnknownWorker(worker=self.worker, job=self.job)
        if self._in_doubt is None:
            return membership.epoch
        sequence, settle = self._sequence + 1, self._in_doubt
        # The server lets go of what the old epoch holds.
        self._lane.keep()
        joined = join(self._transport, self.job, self.worker, None, self.timeout, job_id=membership.job.id)
        applied = (joined.previous_epoch, joined.previous_sequence) == (membership.epoch, sequence)
        settle(applied, [group.options for group in joined.job.groups])
        # All at once: an interrupt in between would leave this worker with an epoch that is fenced, and no doubt of it.
        self._membership, self._departure.epoch, self._sequence, self._in_doubt = joined, joined.epoch, 0, None
        self._enter(joined)
        return joined.epoch

    def pull_into(
        self,
        weights: Sink,
        known: Known | None,
        *,
        in_place: Sink | None = None,
        groups: Names = (),
        parameters: Names = (),
        weights_of: str = "",
    ) -> PullResult:
        """Reads the current weights as this worker, unless they are `known`; sinks as those of `step`.

        `weights_of` names an average that is read instead.
        """
        membership = self._membership
        request = PullRequest(
            self.job,
            self.worker if membership is not None else "",
            membership.epoch if membership is not None else 0,
            known,
            groups=names_of(groups),
            parameters=names_of(parameters),
            weights=weights_of,
        )
        encoding = self.wire.weights

        with self._lock, self._showing("pulling", self._elements) as count:

            def attempt(left: float) -> PullResult:
                count.passed = 0
                sink = count.sink(weights)
                return self._on_lane(lambda lane: lane.pull(request, sink, left, in_place=in_place, encoding=encoding))

            result = self._ask(attempt)
        if not groups and not parameters and not weights_of:
            self._version = result.version
        return result

    def write_state(self, header: WriteStateHeader, numbers: Source) -> tuple[tuple[GroupOptions, ...], JobVersion]:
        """Replaces state, weights and options of the job, all or nothing; returns the options of all groups.

        A call whose answer is lost is repeated, and counts once. Raises `OtherWorkers` or `WeightsMovedOn` for a header
        that says `if_alone_at`.
        """
        known = replace(header, write_id=secrets.token_hex(16))
        with self._lock:
            self._check_usable()
            return self._ask(lambda left: self._transport.write_state(known, numbers, left))

    def other_workers(self) -> tuple[str, ...]:
        """The names of the other workers that hold a lease now."""
        return tuple(worker.name for worker in self.workers() if worker.active and worker.name != self.worker)

    def _why_late(self) -> str:
        """A step of a sync job waits for all its workers."""
        waits = self._membership is not None and isinstance(self._membership.job.policy, Sync)
        return "; a step of a sync job waits for all its workers" if waits else ""
