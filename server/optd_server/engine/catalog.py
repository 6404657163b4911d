"""The jobs of a server by name, and the uploads that are to become jobs."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from optd_server.engine.apply import create
from optd_server.engine.clock import Clock
from optd_server.engine.events import Created
from optd_server.engine.job import Job
from optd_server.engine.log import KeepsNothing, Log
from optd_server.engine.membership.members import REMEMBERED
from optd_server.engine.memory import Memory, Reservation
from optd_server.engine.offload import Offload
from optd_server.engine.options.groups import extent_of_groups
from optd_server.engine.options.registration import check_job
from optd_server.engine.options.resolution import algorithm_of, find_algorithm
from optd_server.engine.planning import planned_bytes
from optd_server.engine.rounds.policies.registry import deciding, policy_of
from optd_server.optim.algorithm import Algorithm
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.errors import InvalidArgument, JobExists, NotFound, OptdError, UnknownJob
from optd_wire.values import WEIGHTS, GroupSpec, JobSpec

TRIMMED_BYTES = 64 << 20
"""What a job must have been planned with for the allocator to be asked what it keeps, which takes milliseconds."""


class WeightsUpload:
    """A job whose weights are on their way. Nobody sees it until it is finished."""

    def __init__(self, spec: JobSpec, reservation: Reservation, creation_id: str) -> None:
        self.spec = spec
        self.creation_id = creation_id
        self.reservation = reservation
        self.weights = FlatBuffers([extent_of_groups(spec.groups, spec.algorithm)])
        self.sink = FrameSink(self.weights, WEIGHTS, [group.name for group in spec.groups])
        self.settled = asyncio.Event()
        self.job: Job | None = None


class Catalog:
    """All jobs of a server. `log_of` makes the log of a job that is about to be created, by its name."""

    def __init__(
        self,
        *,
        memory: Memory,
        offload: Offload,
        clock: Clock,
        lease_seconds: float,
        ephemeral_seconds: float = 600.0,
        log_of: Callable[[str], Log] = lambda _: KeepsNothing(),
    ) -> None:
        self.memory = memory
        self.offload = offload
        self.clock = clock
        self.lease_seconds = lease_seconds
        self.ephemeral_seconds = ephemeral_seconds
        """How long an ephemeral job is kept while no worker holds a lease, unless the last one has left."""
        self.rejections_without_job: Counter[str] = Counter()
        """By reason, the pushes that were refused before it was known which job they are for."""
        self._log_of = log_of
        self._jobs: dict[str, Job] = {}
        self._uploads: dict[str, WeightsUpload] = {}
        self._last_epochs: dict[str, int] = {}
        """By name, of jobs that have ended."""
        self._forgotten_epoch = 0

    def __iter__(self) -> Iterator[Job]:
        """The jobs in the order of their names."""
        return iter([self._jobs[name] for name in sorted(self._jobs)])

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, name: str) -> Job:
        """The job of this name; raises `UnknownJob`."""
        job = self._jobs.get(name)
        if job is None:
            raise UnknownJob(job=name[:200])
        return job

    @contextmanager
    def noting_rejections(self) -> Iterator[None]:
        """Counts an error of the block as that of a push whose job is not known, if it is the push that is wrong."""
        try:
            yield
        except (InvalidArgument, NotFound) as error:
            self.rejections_without_job[error.reason] += 1
            raise

    async def find_whole(self, name: str) -> Job:
        """As `find`, but waits for a job that is being uploaded; raises `UnknownJob` if that comes to nothing."""
        upload = self._uploads.get(name)
        if upload is not None:
            await upload.settled.wait()
        return self.find(name)

    async def find_created(self, name: str, creation_id: str) -> Job | None:
        """The job that an earlier call with the same `creation_id` has created, or is creating, if there is one."""
        upload = self._uploads.get(name)
        if creation_id and upload is not None and upload.creation_id == creation_id:
            await upload.settled.wait()
        job = self._jobs.get(name)
        return job if job is not None and creation_id and job.id == creation_id else None

    async def make_way(self, spec: JobSpec, worker: str) -> None:
        """Deletes the job that `spec` is to replace, if there is one; raises what is wrong with the spec.

        Raises `JobInUse` if workers other than `worker` hold a lease, or `MemoryExceeded`.
        """
        needed = self._checked_bytes(spec)
        job = self._jobs.get(spec.name)
        if job is not None:
            job.workers.check_free_for(worker)
            job.memory.check_replacing(needed)
            await self._end(job)

    @contextmanager
    def upload(self, spec: JobSpec, creation_id: str = "") -> Iterator[WeightsUpload]:
        """Reserves a job's name and memory while its weights arrive.

        If the block ends without `finish`, for whatever reason, nothing of the job is left and its name is free.
        Raises `JobExists`, `MemoryExceeded`, or what is wrong with the spec.
        """
        needed = self._checked_bytes(spec)
        if spec.name in self._jobs:
            raise JobExists(job=spec.name, how="exists already")
        if spec.name in self._uploads:
            raise JobExists(job=spec.name, how="is being created by another worker")
        reservation = Reservation(f"job {spec.name!r}")
        self.memory.reserve(reservation, needed)
        upload = None
        try:
            upload = self._uploads[spec.name] = WeightsUpload(spec, reservation, creation_id)
            yield upload
        finally:
            if upload is None or upload.job is None:
                self.memory.release(reservation)
                if upload is not None:
                    upload.weights.release()
            if upload is not None:
                del self._uploads[spec.name]
                upload.settled.set()

    def _checked_bytes(self, spec: JobSpec) -> int:
        """The bytes that a job is planned with; raises what is wrong with its spec."""
        check_job(spec)
        return planned_bytes(spec, deciding(policy_of(spec)), self.memory.message_bytes)

    async def prepare(self, algorithm: str, groups: Sequence[GroupSpec]) -> None:
        """Has the kernels ready that steps on some groups need, in a job whose own algorithm is `algorithm`.

        May take seconds if they were never compiled.
        """
        dtypes: dict[Algorithm, set[str]] = {}
        for group in groups:
            own = algorithm_of(group, find_algorithm(algorithm))
            dtypes.setdefault(own, set()).update(parameter.dtype for parameter in group.parameters)
        for own, used in dtypes.items():
            await self.offload.prepare(own, used)

    async def finish(self, upload: WeightsUpload) -> Job:
        """Makes an upload a job; raises `IncompleteParameter` if weights are missing."""
        upload.sink.ledger.require_all()
        spec = upload.spec
        event = Created(
            spec=spec,
            policy=policy_of(spec),
            id=upload.creation_id,
            wall=self.clock.wall(),
            first_epoch=self._last_epochs.get(spec.name, self._forgotten_epoch),
            weights=upload.weights,
        )
        log = self._log_of(spec.name)
        position = await log.append(event, 0)
        job = upload.job = Job(
            create(event),
            log=log,
            memory=self.memory,
            reservation=upload.reservation,
            offload=self.offload,
            clock=self.clock,
            lease_seconds=self.lease_seconds,
        )
        self._jobs[spec.name] = job
        job.fold.position = position
        await job.fold.durable()
        return job

    async def delete(self, name: str) -> Job:
        """Ends a job; its name is free at once. Raises `UnknownJob`."""
        job = self.find(name)
        await self._end(job)
        return job

    async def leave(self, name: str, worker: str, epoch: int) -> Job:
        """Ends a worker's lease, and an ephemeral job with its last one. Raises `UnknownJob` or `StaleEpoch`."""
        job = self.find(name)
        left = job.workers.leave(worker, epoch)
        try:
            await left
        finally:
            # Also if the call is cancelled while it waits for a step: the lease has ended before that.
            if job.state.ephemeral and not job.workers.active:
                await self._end(job)
        return job

    async def expire(self) -> None:
        """Ends all leases that have run out, and the ephemeral jobs whose workers have been gone for too long."""
        for job in tuple(self._jobs.values()):
            job.workers.expire()
            if job.state.ephemeral and job.workers.idle_seconds() >= self.ephemeral_seconds:
                await self._end(job)

    async def _end(self, job: Job) -> None:
        if self._jobs.get(job.name) is job:  # else somebody has deleted it meanwhile
            del self._jobs[job.name]
            self._note_epochs(job)
            await job.close()
            await job.fold.durable()
            if job.memory.bytes >= TRIMMED_BYTES:
                await self.offload.give_back_memory()

    def _note_epochs(self, job: Job) -> None:
        """Has epochs of a later job of the name begin behind those of this one: its workers are fenced there."""
        self._last_epochs[job.name] = job.state.members.last_epoch
        if len(self._last_epochs) > REMEMBERED:
            name = next(iter(self._last_epochs))
            self._forgotten_epoch = max(self._forgotten_epoch, self._last_epochs.pop(name))

    def refuse_waiting(self, error: OptdError) -> None:
        """Answers every push that waits for others with `error`."""
        for job in self._jobs.values():
            job.pushes.refuse_waiting(error)

    async def close(self) -> None:
        """Ends all jobs."""
        for name in tuple(self._jobs):
            await self.delete(name)
