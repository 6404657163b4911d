"""The jobs of a server by name, and the uploads that will become jobs."""

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
"""Only after the end of a job of at least this size the allocator returns memory, because that takes milliseconds."""


class WeightsUpload:
    """A job whose weights are still arriving. Nobody sees it until it is finished."""

    def __init__(self, spec: JobSpec, reservation: Reservation, creation_id: str) -> None:
        self.spec = spec
        self.creation_id = creation_id
        self.reservation = reservation
        self.weights = FlatBuffers([extent_of_groups(spec.groups, spec.algorithm)])
        self.sink = FrameSink(self.weights, WEIGHTS, [group.name for group in spec.groups])
        self.settled = asyncio.Event()
        self.job: Job | None = None


class Catalog:
    """All jobs of a server. `log_of` maps the name of a job that is about to be created to its log."""

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
        """How long an ephemeral job outlives its last expired lease. It ends at once when its last worker leaves."""
        self.rejections_without_job: Counter[str] = Counter()
        """By reason, the pushes that were refused before their job was known."""
        self._log_of = log_of
        self._jobs: dict[str, Job] = {}
        self._uploads: dict[str, WeightsUpload] = {}
        self._last_epochs: dict[str, int] = {}
        """By name, the last epoch of each job that has ended."""
        self._forgotten_epoch = 0

    def __iter__(self) -> Iterator[Job]:
        """Iterates over the jobs in the order of their names."""
        return iter([self._jobs[name] for name in sorted(self._jobs)])

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, name: str) -> Job:
        """Returns the job of this name; raises `UnknownJob`."""
        job = self._jobs.get(name)
        if job is None:
            raise UnknownJob(job=name[:200])
        return job

    @contextmanager
    def noting_rejections(self) -> Iterator[None]:
        """Counts an error of the block as the rejection of a push without a known job, if the push is at fault."""
        try:
            yield
        except (InvalidArgument, NotFound) as error:
            self.rejections_without_job[error.reason] += 1
            raise

    async def find_whole(self, name: str) -> Job:
        """Does the same as `find`, but waits for an upload of that name; raises `UnknownJob` if the upload fails."""
        upload = self._uploads.get(name)
        if upload is not None:
            await upload.settled.wait()
        return self.find(name)

    async def find_created(self, name: str, creation_id: str) -> Job | None:
        """Returns the job that an earlier call with this `creation_id` created, or None; waits for its upload."""
        upload = self._uploads.get(name)
        if creation_id and upload is not None and upload.creation_id == creation_id:
            await upload.settled.wait()
        job = self._jobs.get(name)
        return job if job is not None and creation_id and job.id == creation_id else None

    async def make_way(self, spec: JobSpec, worker: str) -> None:
        """Deletes the job that `spec` is to replace, if there is one; raises the first problem of the spec.

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

        If the block ends without `finish`, for whatever reason, nothing of the job remains and its name is free again.
        Raises `JobExists`, `MemoryExceeded`, or the first problem of the spec.
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
        """Checks a spec, and returns the bytes that its job needs; raises the first problem of the spec."""
        check_job(spec)
        return planned_bytes(spec, deciding(policy_of(spec)), self.memory.message_bytes)

    async def prepare(self, algorithm: str, groups: Sequence[GroupSpec]) -> None:
        """Prepares the kernels that steps on these groups need, in a job whose own algorithm is `algorithm`.

        This may take seconds if the kernels were never compiled before.
        """
        dtypes: dict[Algorithm, set[str]] = {}
        for group in groups:
            own = algorithm_of(group, find_algorithm(algorithm))
            dtypes.setdefault(own, set()).update(parameter.dtype for parameter in group.parameters)
        for own, used in dtypes.items():
            await self.offload.prepare(own, used)

    async def finish(self, upload: WeightsUpload) -> Job:
        """Turns a complete upload into a job; raises `IncompleteParameter` if weights are missing."""
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
        """Ends a worker's lease; the last lease of an ephemeral job ends the job.

        Raises `UnknownJob`, `UnknownWorker` or `StaleEpoch`.
        """
        job = self.find(name)
        left = job.workers.leave(worker, epoch)
        try:
            await left
        finally:
            # The lease has ended even if the call is cancelled while it waits for a step.
            if job.state.ephemeral and not job.workers.active:
                await self._end(job)
        return job

    async def expire(self) -> None:
        """Ends all leases that have run out, and the ephemeral jobs that have had no worker for too long."""
        for job in tuple(self._jobs.values()):
            job.workers.expire()
            if job.state.ephemeral and job.workers.idle_seconds() >= self.ephemeral_seconds:
                await self._end(job)

    async def _end(self, job: Job) -> None:
        if self._jobs.get(job.name) is job:  # otherwise another call has deleted it meanwhile
            del self._jobs[job.name]
            self._note_epochs(job)
            await job.close()
            await job.fold.durable()
            if job.memory.bytes >= TRIMMED_BYTES:
                await self.offload.give_back_memory()

    def _note_epochs(self, job: Job) -> None:
        """Makes the epochs of a later job of this name begin above those of this one, which fences its workers."""
        self._last_epochs[job.name] = job.state.members.last_epoch
        if len(self._last_epochs) > REMEMBERED:
            name = next(iter(self._last_epochs))
            self._forgotten_epoch = max(self._forgotten_epoch, self._last_epochs.pop(name))

    def refuse_waiting(self, error: OptdError) -> None:
        """Answers every push that is waiting for its round with `error`."""
        for job in self._jobs.values():
            job.pushes.refuse_waiting(error)

    async def close(self) -> None:
        """Ends all jobs."""
        for name in tuple(self._jobs):
            await self.delete(name)
