"""One job: the asyncio shell around its state, and everything that services ask of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from optd_server.engine.apply import relocate
from optd_server.engine.byte_budget import ByteBudget
from optd_server.engine.clock import Clock
from optd_server.engine.editor import JobEditor
from optd_server.engine.events import Deleted
from optd_server.engine.fold import Fold, snapshot_of
from optd_server.engine.log import Log
from optd_server.engine.membership.activity import UNKNOWN, Process
from optd_server.engine.membership.leases import Leases
from optd_server.engine.membership.rejections import Rejections
from optd_server.engine.memory import Memory, Reservation
from optd_server.engine.offload import Offload
from optd_server.engine.options.groups import Groups
from optd_server.engine.options.registration import check_same
from optd_server.engine.planning import JobMemory
from optd_server.engine.prefaulting import Prefaulting
from optd_server.engine.reading import Reading
from optd_server.engine.rounds.gradient_reads import GradientReads
from optd_server.engine.rounds.in_flight import InFlight
from optd_server.engine.rounds.policies.registry import decider_of
from optd_server.engine.rounds.push import GradientSource
from optd_server.engine.sharing import Share, Sharing
from optd_server.engine.state import JobState, StateProgress
from optd_server.engine.version_waits import VersionWaits
from optd_server.engine.workers import Workers
from optd_server.engine.writer import Writer
from optd_server.store.gradients import Slots
from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot
from optd_wire.errors import InvalidRequest, NonfiniteGradient, OptdError, UnknownJob
from optd_wire.values import (
    GroupSummary,
    JobInfo,
    JobSpec,
    JobSummary,
    JobVersion,
    Membership,
    OptionChange,
    PushHeader,
    PushResult,
    Shard,
    SharedGradient,
)

T = TypeVar("T")
_serials = count(1)


class Job:
    """A running job, created with all of its weights. Lives on one event loop.

    `position` is that of its `Created` event in the log.
    """

    def __init__(
        self,
        state: JobState,
        *,
        log: Log,
        position: int,
        memory: Memory,
        reservation: Reservation,
        offload: Offload,
        clock: Clock,
        lease_seconds: float,
        inflight: ByteBudget,
    ) -> None:
        policy = decider_of(state.policy, StateProgress(state))
        self.state = state
        self.closed = asyncio.Event()
        self.inflight = inflight
        """What bounds the bytes of messages that are held for this job."""
        self.rejections = Rejections()
        self.leases = Leases(state.name, state.members, lease_seconds)
        self.snapshots = Snapshots(snapshot_of(state), most=memory.snapshots)
        self.slots = Slots(most=policy.slots)
        self.gradient_reads = GradientReads()
        self.memory = JobMemory(state, policy, memory, reservation)
        self.fold = Fold(state, self.snapshots, log, position, offload)
        self.version_waits = VersionWaits(self.fold)
        self.offload = offload
        self.sharing = Sharing(state, self.snapshots, self.gradient_reads, self.leases, memory)
        self.prefaulting = Prefaulting(state, self.snapshots, self.slots, self.memory, offload)
        self.log = log
        self._serial = next(_serials)
        self._message_bytes = memory.message_bytes
        self._clock = clock
        self._writer = Writer(self.fold.fail)
        self.pushes = InFlight(
            self.fold, self.leases, policy, self._writer, offload, self.memory, self.slots, self.gradient_reads, clock
        )
        self.workers = Workers(self.fold, self.leases, self.pushes, self.sharing, self._writer, clock)
        self.editor = JobEditor(
            self.fold, self.leases, self.pushes, self.slots, self.memory, self.prefaulting, self._writer, clock
        )

    # Description

    @property
    def name(self) -> str:
        """The job's name."""
        return self.state.name

    @property
    def id(self) -> str:
        """Tells the job from earlier jobs of the same name."""
        return self.state.id

    @property
    def version(self) -> JobVersion:
        """The version of the snapshot that readers get now."""
        return self.stamped(self.snapshots.current.version)

    @property
    def durable_version(self) -> int:
        """The newest version that survives a restart of the server."""
        return self.log.durable_version

    def stamped(self, version: JobVersion) -> JobVersion:
        """Add the current durable version to a version that is about to be sent."""
        durable = self.log.durable_version
        return version if version.durable_version == durable else replace(version, durable_version=durable)

    def info(self) -> JobInfo:
        """Describe the job with its groups and parameters."""
        state = self.state
        snapshot = self.snapshots.current  # a step that is under way may have changed the state already
        return JobInfo(
            name=self.name,
            algorithm=state.groups.algorithm.name,
            defaults=state.groups.defaults,
            policy=state.policy,
            groups=snapshot.group_infos(),
            version=self.stamped(snapshot.version),
            options=snapshot.job_options,
            averages=snapshot.averages,
            ephemeral=state.ephemeral,
            stepped_unix_ms=int(state.stepped_wall * 1000),
            id=state.id,
        )

    def summary(self) -> JobSummary:
        """Summarize the job for a list of jobs."""
        state, groups = self.state, self.state.groups
        return JobSummary(
            name=self.name,
            algorithm=groups.algorithm.name,
            policy=state.policy,
            version=self.version,
            groups=len(groups),
            parameters=groups.parameters,
            elements=groups.elements,
            workers=self.leases.active,
            pushes=state.applied_pushes,
            rejections=self.rejections.total,
            planned_bytes=self.memory.bytes,
            created_unix_ms=int(state.created_wall * 1000),
            failure=self.fold.failure,
            gradients=self.rejections.added_to(replace(state.gradients, accumulated=state.accumulation.count)),
            ephemeral=state.ephemeral,
            stepped_unix_ms=int(state.stepped_wall * 1000),
        )

    def group_summaries(self) -> tuple[GroupSummary, ...]:
        """Summarize each group. All summaries are of one version."""
        return self.snapshots.current.summaries()

    def group_summary(self, name: str) -> GroupSummary:
        """Summarize one group; raise `UnknownGroup`."""
        return self.snapshots.current.summary(self.state.groups.index(name, self.name))

    def option_history(self, group: str = "") -> tuple[tuple[OptionChange, ...], int]:
        """Return the option changes of a group, or of everything if `group` is empty, and how many are forgotten.

        Raise `UnknownGroup`.
        """
        if group:
            self.state.groups.index(group, self.name)
        history = self.state.history
        return history.of(group or None), history.forgotten(group or None)

    @contextmanager
    def noting_rejections(self, worker: str) -> Iterator[None]:
        """Record an error that the block raises as a rejection of the job."""
        try:
            yield
        except OptdError as error:
            if self.state.members.find(worker) is not None:
                self.leases.of(worker).activity.rejections[error.reason] += 1
            version, wall = self.state.version, self._clock.wall()
            self.rejections.add(error, worker=worker, version=version, wall=wall)
            if isinstance(error, NonfiniteGradient):
                self.rejections.note_nonfinite(error, worker, version, wall)
            self.fold.notify()
            raise

    # Pushes

    async def push(self, header: PushHeader, source: GradientSource) -> PushResult:
        """Make a gradient that still has to be received part of a step; see `InFlight.push`."""
        await self._check_durable(header)
        self.leases.note_speed(header.worker, header.speed)
        return await self._durable(await self.pushes.push(header, source), header)

    async def push_shared(self, header: PushHeader, shared: SharedGradient) -> PushResult:
        """Make a gradient in a worker's shared memory part of a step; see `InFlight.push_shared`."""
        self.workers.check(header.worker, header.epoch)
        gradient = self.sharing.gradient(header.worker, header.epoch, shared)
        await self._check_durable(header)
        self.leases.note_speed(header.worker, header.speed)
        return await self._durable(await self.pushes.push_shared(header, gradient), header)

    async def _check_durable(self, header: PushHeader) -> None:
        """Refuse a push that asks for durability where there is none, before it is applied."""
        if header.durable:
            await self.make_durable(0)

    async def _durable(self, result: PushResult, header: PushHeader) -> PushResult:
        """Return a result once it is durable. This waits outside the writer, so that steps go on meanwhile."""
        await self.durable()
        if header.durable:
            await self.make_durable(None)  # not its version: gradients that are added up have none yet
        version = self.stamped(result.version)
        return result if version is result.version else replace(result, version=version)

    async def durable(self) -> None:
        """Wait until all events so far have the durability that the operator chose."""
        await self.fold.durable()

    async def make_durable(self, version: int | None) -> None:
        """Wait until a version survives a power cut; None means everything so far.

        Raise `NothingDurable`, or `InvalidRequest` for a version that the job has not come to.
        """
        if version is not None and version > self.state.version:
            at = self.state.version
            raise InvalidRequest(problem=f"job {self.name!r} is at version {at}, so version {version} cannot be kept")
        await self.log.make_durable(version)

    # Workers

    async def join(
        self,
        name: str,
        spec: JobSpec | None,
        process: Process = UNKNOWN,
        *,
        resumes_epoch: int = 0,
        session_id: str = "",
    ) -> Membership:
        """Admit a worker under a new epoch; raise `JobMismatch` unless the job matches `spec`.

        `resumes_epoch` and `session_id` are those of `Workers.join`.
        """

        def check() -> None:
            if spec is not None:
                check_same(spec, self.info(), self.state.created_with, self.state.first_policy)

        member = await self.workers.join(name, check, process, resumes_epoch=resumes_epoch, session_id=session_id)
        if not self.closed.is_set():
            self.prefaulting.begin_for_messages()
        return Membership(
            epoch=member.epoch,
            lease_ms=int(self.leases.lease_seconds * 1000),
            job=self.info(),
            shards=(Shard(address="", ranges=self.state.groups.ranges()),),
            max_message_bytes=self._message_bytes,
            previous_epoch=member.previous_epoch,
            previous_sequence=member.previous_sequence,
            other_workers=self.leases.active - 1,
        )

    async def open_shared_memory(self, name: str, epoch: int) -> Share:
        """Open shared memory for a worker, and move the weights where it can map them.

        Raise `UnknownWorker`, `StaleEpoch`, or what `Sharing.open` raises.
        """

        async def action() -> Share:
            self.workers.check(name, epoch)
            await self.prefaulting.end()
            if not self.snapshots.shared:
                groups = self.state.groups
                try:
                    work = self.snapshots.share
                    relocate(self.state, await self.offload.run(groups.cost(groups.elements), work))
                except OSError as problem:  # no descriptors left, or no memory
                    raise self.sharing.unavailable(name, problem) from None
            if self.prefaulting.is_large:
                await self.offload.prefault(self.snapshots.prepare())
            self.workers.check(name, epoch)  # it may have left meanwhile
            share = self.sharing.open(name, epoch)
            if self.prefaulting.is_large:
                await self.offload.prefault(share.buffers.all_slabs())
            return share

        return await self._writer.run(action)

    # Readers

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Hold the current weights, which do not change while the block runs. Steps go on meanwhile."""
        snapshot = self.snapshots.hold()
        try:
            yield self.read_of(snapshot)
        finally:
            self.snapshots.release(snapshot)

    def read_of(self, snapshot: Snapshot) -> Reading:
        """Return a reading of a snapshot that is held, or that is a copy."""
        return Reading(self._serial, snapshot, self.snapshots)

    # Work between two steps

    async def between_steps(self, elements: int, work: Callable[[], T]) -> T:
        """Run `work`, which may read the state, between two steps; `elements` is about how many it reads."""

        async def action() -> T:
            with self.slots.reading():
                return await self.offload.run(self.state.groups.cost(elements), work)

        return await self._writer.run(action)

    @asynccontextmanager
    async def captured(self, spare: Groups | None = None) -> AsyncIterator[tuple[JobState, int]]:
        """Hold a copy of the state between two events, with the position of the last one; steps go on meanwhile.

        The weights are not copied. `spare` are the groups of an earlier copy that nobody needs. Raise `JobFailed` if
        the state may be half-changed.
        """

        async def action() -> tuple[JobState, int, Snapshot]:
            self.fold.check_not_failed()
            cost = self.state.groups.cost(self.state.groups.elements)
            copied = await self.offload.run(cost, lambda: self.state.captured(spare))
            return copied, self.fold.position, self.snapshots.hold()

        copied, position, held = await self._writer.run(action)
        try:
            yield copied, position
        finally:
            self.snapshots.release(held)

    async def between_events(self, action: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an action of the job's writer, which may take events, and wait until they are durable."""
        found = await self._writer.run(action)
        await self.fold.durable()
        return found

    # The end

    async def delete(self) -> None:
        """Wait for a running step, and then delete the job. Everything that waits fails with `UnknownJob`."""
        await self._stop()
        try:
            await self.fold.take(Deleted())
        finally:
            self._release()

    async def close(self, gone: OptdError | None = None) -> None:
        """Do the same as `delete`, but no event says so: the log still has the job.

        Everything that waits or comes later fails with `gone`; default: `UnknownJob`.
        """
        await self._stop(gone)
        self._release()

    async def _stop(self, gone: OptdError | None = None) -> None:
        """End everything that waits, and with it the writer. Only the caller may take events after that."""
        gone = UnknownJob(job=self.name) if gone is None else gone
        self.closed.set()
        self.version_waits.close(gone)
        self.pushes.close(gone)
        self.snapshots.close(gone)
        await self._writer.close(gone)
        self.pushes.fail_all(gone)
        self.pushes.waiting.close()
        self.sharing.close_all()
        await self.prefaulting.end()

    def _release(self) -> None:
        """Free the memory of a job that has stopped."""
        self.state.release_all()
        self.slots.release_all()
        self.gradient_reads.release()
        self.snapshots.release_all()
        self.memory.release()
