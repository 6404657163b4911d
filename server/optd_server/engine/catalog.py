"""The jobs of a server by name, and the uploads that will become jobs."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from optd_server.engine import chronicle
from optd_server.engine.apply import create
from optd_server.engine.arrivals import Arrival, WeightsUpload
from optd_server.engine.byte_budget import ByteBudget, ByteBudgets
from optd_server.engine.clock import Clock
from optd_server.engine.damaged import Damaged
from optd_server.engine.events import Created
from optd_server.engine.job import Job
from optd_server.engine.log import KeepsNothing, Log
from optd_server.engine.membership.members import REMEMBERED
from optd_server.engine.memory import Memory, Reservation
from optd_server.engine.offload import Offload
from optd_server.engine.options.registration import check_job
from optd_server.engine.options.resolution import algorithm_of, find_algorithm
from optd_server.engine.planning import JobMemory, planned_bytes
from optd_server.engine.rounds.policies.registry import decider_of, policy_of
from optd_server.engine.state import JobState
from optd_server.engine.uncancelled import to_the_end
from optd_server.optim.algorithm import Algorithm
from optd_wire.errors import InvalidArgument, JobDamaged, JobExists, JobReloads, NotFound, OptdError, UnknownJob
from optd_wire.values import GroupSpec, JobSpec, JobSummary

TRIMMED_BYTES = 64 << 20
"""Freed memory is returned to the system only after the end of a job of at least this size: it takes milliseconds."""


logger = logging.getLogger(__name__)
A = TypeVar("A", bound=Arrival)


async def _awaited(work: Awaitable[None]) -> None:
    await work


def nothing_kept(name: str, id_: str) -> Log:
    """Return the log of a job that ends with its server."""
    return KeepsNothing()


class Catalog:
    """All jobs of a server. `log_of` maps the name and the id of a job that is about to be created to its log.

    `epochs` are those of jobs that ended before the server started; see `DataDir.epochs`.
    """

    def __init__(
        self,
        *,
        memory: Memory,
        offload: Offload,
        clock: Clock,
        lease_seconds: float,
        ephemeral_seconds: float = 600.0,
        budgets: ByteBudgets | None = None,
        log_of: Callable[[str, str], Log] = nothing_kept,
        epochs: tuple[dict[str, int], int] = ({}, 0),
    ) -> None:
        self.memory = memory
        self.offload = offload
        self.clock = clock
        self.lease_seconds = lease_seconds
        self.ephemeral_seconds = ephemeral_seconds
        """How long an ephemeral job outlives its last lease if that expired, or if a worker means to come back.

        It ends at once when its last worker leaves for good.
        """
        self.budgets = ByteBudgets() if budgets is None else budgets
        self.rejections_without_job: Counter[str] = Counter()
        """By reason, the pushes that were refused before their job was known."""
        self._log_of = log_of
        self._jobs: dict[str, Job] = {}
        self._arriving: dict[str, Arrival] = {}
        self._reloading: set[str] = set()
        """The names of jobs that are being loaded from the disk again."""
        self._last_epochs = dict(epochs[0])
        """By name, the last epoch of each job that has ended."""
        self._forgotten_epoch = epochs[1]
        self._damaged: dict[str, Damaged] = {}
        """By name, the jobs that the server goes on without."""

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the jobs in the order of their names."""
        return iter([self._jobs[name] for name in sorted(self._jobs)])

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, name: str) -> Job:
        """Return the job of this name.

        Raise `UnknownJob`, `JobReloads`, or `JobDamaged` if the server goes on without it.
        """
        job = self._jobs.get(name)
        if job is None:
            self._check_not_damaged(name)
            raise UnknownJob(job=name[:200])
        self._check_settled(name)
        return job

    def budget_of(self, name: str) -> ByteBudget | None:
        """Return the budget of a job's bytes in flight, or None if there is no such job."""
        job = self._jobs.get(name)
        return None if job is None else job.inflight

    def _check_not_damaged(self, name: str) -> None:
        if name in self._damaged:
            raise JobDamaged(job=name, problem=self._damaged[name].problem)

    def start_without(self, name: str, problem: str, remove: Callable[[], Awaitable[None]]) -> None:
        """Record that a job could not be loaded; `remove` removes what is left of it.

        Its name stays taken until the job is deleted: nobody may take a new job for it.
        """
        self._damaged[name] = Damaged(problem, remove)

    def summaries(self) -> list[JobSummary]:
        """Summarize all jobs in the order of their names, also those that could not be loaded."""
        found = [job.summary() for job in self._jobs.values()]
        found += [each.summary(name) for name, each in self._damaged.items()]
        return sorted(found, key=lambda summary: summary.name)

    @contextmanager
    def noting_rejections(self) -> Iterator[None]:
        """Count an error of the block as the rejection of a push without a known job, if the push is at fault."""
        try:
            yield
        except (InvalidArgument, NotFound) as error:
            self.rejections_without_job[error.reason] += 1
            raise

    async def find_whole(self, name: str) -> Job:
        """Do the same as `find`, but wait for an upload of that name; raise `UnknownJob` if the upload fails."""
        arrival = self._arriving.get(name)
        if arrival is not None:
            await arrival.settled.wait()
        return self.find(name)

    async def find_created(self, name: str, creation_id: str) -> Job | None:
        """Return the job that an earlier call with this `creation_id` created, or None; wait for its upload."""
        arrival = self._arriving.get(name)
        if creation_id and arrival is not None and arrival.creation_id == creation_id:
            await arrival.settled.wait()
        job = self._jobs.get(name)
        return job if job is not None and creation_id and job.id == creation_id else None

    async def make_way(self, spec: JobSpec, worker: str) -> None:
        """Delete the job that `spec` is to replace, if there is one; raise the first problem of the spec.

        Raise `JobInUse` if workers other than `worker` hold a lease, or `MemoryExceeded`.
        """
        needed = self._checked_bytes(spec)
        job = self._jobs.get(spec.name)
        if job is not None:
            job.workers.check_free_for(worker)
            job.memory.check_replacing(needed)
            await self._end(job, f"worker {worker} replaces it")

    def upload(self, spec: JobSpec, creation_id: str = "") -> AbstractContextManager[WeightsUpload]:
        """Reserve a job's name and memory while its weights arrive.

        If the block ends without `finish`, for whatever reason, nothing of the job remains and its name is free again.
        Raise `JobExists`, `MemoryExceeded`, or the first problem of the spec.
        """
        return self._arrival(spec, lambda reservation: WeightsUpload(spec, reservation, creation_id))

    def restoring(self, spec: JobSpec, creation_id: str = "") -> AbstractContextManager[Arrival]:
        """Do the same as `upload` for a job that arrives with its state; `finish_restored` ends it."""
        return self._arrival(spec, lambda reservation: Arrival(spec, reservation, creation_id))

    @contextmanager
    def _arrival(self, spec: JobSpec, begin: Callable[[Reservation], A]) -> Iterator[A]:
        needed = self._checked_bytes(spec)
        self._check_not_damaged(spec.name)
        if spec.name in self._jobs:
            raise JobExists(job=spec.name, how="exists already")
        if spec.name in self._arriving:
            raise JobExists(job=spec.name, how="is being created by another worker")
        reservation = Reservation(f"job {spec.name!r}")
        self.memory.reserve(reservation, needed)
        arrival = None
        try:
            arrival = begin(reservation)
            self._arriving[spec.name] = arrival
            yield arrival
        finally:
            if arrival is None or arrival.job is None:
                self.memory.release(reservation)
            if arrival is not None:
                if arrival.job is None:
                    arrival.release()
                del self._arriving[spec.name]
                arrival.settled.set()

    def _checked_bytes(self, spec: JobSpec) -> int:
        """Check a spec, and return the bytes that its job needs; raise the first problem of the spec."""
        check_job(spec)
        return planned_bytes(spec, decider_of(policy_of(spec)), self.memory)

    async def prepare(self, algorithm: str, groups: Sequence[GroupSpec]) -> None:
        """Prepare the kernels that steps on these groups need, in a job whose own algorithm is `algorithm`.

        This may take seconds if the kernels were never compiled before.
        """
        used = [(algorithm_of(group, find_algorithm(algorithm)), group.parameters) for group in groups]
        await self._prepare((own, parameter.dtype) for own, parameters in used for parameter in parameters)

    async def prepare_state(self, state: JobState) -> None:
        """Do the same for the groups of a job that was loaded."""
        used = zip(state.groups.algorithms, state.groups.layouts, strict=True)
        await self._prepare((own, parameter.dtype) for own, layout in used for parameter in layout.parameters)

    async def _prepare(self, used: Iterable[tuple[Algorithm, str]]) -> None:
        dtypes: dict[Algorithm, set[str]] = {}
        for algorithm, dtype in used:
            dtypes.setdefault(algorithm, set()).add(dtype)
        for algorithm, own in dtypes.items():
            await self.offload.prepare(algorithm, own)

    async def finish(self, upload: WeightsUpload) -> Job:
        """Turn a complete upload into a durable job; raise `IncompleteParameter` if weights are missing."""
        upload.sink.ledger.require_all()
        job = await to_the_end(self._begin(upload))
        await job.durable()
        return job

    async def _begin(self, upload: WeightsUpload) -> Job:
        spec = upload.spec
        event = Created(
            spec=spec,
            policy=policy_of(spec),
            id=upload.creation_id,
            wall=self.clock.wall(),
            first_epoch=self.first_epoch(spec.name),
            weights=upload.weights,
        )
        log = self._log_of(spec.name, upload.creation_id)
        position = await log.append(event, 0, None)
        upload.job = self._add(create(event), log, position, upload.reservation)
        chronicle.created(upload.job.state)
        return upload.job

    def first_epoch(self, name: str) -> int:
        """Return the epoch above which those of a new job of this name begin."""
        return self._last_epochs.get(name, self._forgotten_epoch)

    def make_room(self, arrival: Arrival, state: JobState) -> None:
        """Reserve what a state that has arrived needs; raise `MemoryExceeded`."""
        JobMemory(state, decider_of(state.policy), self.memory, arrival.reservation).fit()

    def finish_restored(self, arrival: Arrival, state: JobState, log: Log, position: int) -> Job:
        """Turn a state that has arrived, and has room, into a job; its log has it."""
        arrival.job = self._add(state, log, position, arrival.reservation)
        chronicle.restored(state)
        return arrival.job

    async def reload(
        self,
        job: Job,
        load: Callable[[], Awaitable[tuple[JobState, Log, int]]],
        remove: Callable[[], Awaitable[None]],
    ) -> None:
        """Stop a job, and go on with what `load` reads of it. Calls fail meanwhile with `JobReloads`.

        `load` returns a state with its log, and the position of the last event. If it raises, the server goes on
        without the job, which `remove` removes when it is deleted. Raise `UnknownJob` if the job has ended, or
        `JobReloads` if that is going on already.
        """
        name = job.name
        if self._jobs.get(name) is not job:
            raise UnknownJob(job=name)
        self._check_settled(name)
        self._reloading.add(name)
        try:
            await to_the_end(self._release(job, job.close(JobReloads(job=name))))
            state, log, position = await load()
            await self.prepare_state(state)
            self.adopt(state, log, position).workers.resume()
        except Exception as problem:
            self._jobs.pop(name, None)
            self.start_without(name, str(problem) or repr(problem), remove)
            raise
        finally:
            self._reloading.discard(name)

    def _check_settled(self, name: str) -> None:
        if name in self._reloading:
            raise JobReloads(job=name)

    def adopt(self, state: JobState, log: Log, position: int) -> Job:
        """Take over a job that was recovered; raise `MemoryExceeded`. `resume` grants its workers their leases."""
        reservation = Reservation(f"job {state.name!r}")
        JobMemory(state, decider_of(state.policy), self.memory, reservation).fit()
        return self._add(state, log, position, reservation)

    def resume(self) -> None:
        """Let the workers of all recovered jobs go on in their epochs. Their leases begin now, however long it took."""
        for job in self:
            job.workers.resume()

    def _add(self, state: JobState, log: Log, position: int, reservation: Reservation) -> Job:
        job = self._jobs[state.name] = Job(
            state,
            log=log,
            position=position,
            memory=self.memory,
            reservation=reservation,
            offload=self.offload,
            clock=self.clock,
            lease_seconds=self.lease_seconds,
            inflight=self.budgets.of_job(state.name),
        )
        return job

    async def delete(self, name: str) -> JobSummary:
        """End a job, and return its last summary; its name is free at once. Raise `UnknownJob` or `JobReloads`."""
        damaged = self._damaged.pop(name, None)
        if damaged is not None:
            await to_the_end(_awaited(damaged.remove()))
            return damaged.summary(name)
        job = self.find(name)
        summary = job.summary()
        await self._end(job, "asked to")
        return summary

    async def leave(self, name: str, worker: str, epoch: int, *, returns: bool = False) -> Job:
        """End a worker's lease; the last lease of an ephemeral job ends the job, unless a worker `returns`.

        Raise `UnknownJob`, `UnknownWorker` or `StaleEpoch`.
        """
        job = self.find(name)
        left = job.workers.leave(worker, epoch, returns=returns)
        try:
            await left
        finally:
            # The lease has ended even if the call is cancelled while it waits for a step.
            if job.state.ephemeral and not job.workers.active and not job.workers.returning:
                await self._end(job, "its last worker left")
        return job

    async def expire(self) -> None:
        """End all leases that have run out, and the ephemeral jobs that have had no worker for too long."""
        for job in tuple(self._jobs.values()):
            if job.name in self._reloading:
                continue
            try:
                job.workers.expire()
                if job.state.ephemeral and job.workers.idle_seconds() >= self.ephemeral_seconds:
                    await self._end(job, f"it had no worker for {self.ephemeral_seconds:g} s")
            except Exception:
                # The leases of all other jobs must go on to end, and those of this one in the next round.
                logger.exception("leases of job %s could not be ended", job.name)

    async def _end(self, job: Job, why: str) -> None:
        if self._jobs.get(job.name) is job:  # otherwise another call has deleted it meanwhile
            self._check_settled(job.name)
            del self._jobs[job.name]
            self._note_epochs(job)
            chronicle.deleted(job.state, why)
            await to_the_end(self._release(job, job.delete()))
            await job.durable()

    async def _release(self, job: Job, end: Coroutine[Any, Any, None]) -> None:
        size = job.memory.bytes
        await end
        if size >= TRIMMED_BYTES:
            await self.offload.give_back_memory()

    def _note_epochs(self, job: Job) -> None:
        """Make the epochs of a later job of this name begin above those of this one, which fences its workers."""
        self._last_epochs[job.name] = job.state.members.last_epoch
        if len(self._last_epochs) > REMEMBERED:
            name = next(iter(self._last_epochs))
            self._forgotten_epoch = max(self._forgotten_epoch, self._last_epochs.pop(name))

    def end_version_waits(self, error: OptdError) -> None:
        """Answer every reader that waits for a version with `error`."""
        for job in self._jobs.values():
            job.version_waits.close(error)

    def refuse_waiting(self, error: OptdError) -> None:
        """Answer every push that is waiting for its round with `error`."""
        for job in self._jobs.values():
            job.pushes.refuse_waiting(error)

    async def close(self) -> None:
        """Close all jobs. Their logs still have them."""
        while self._jobs:
            job = self._jobs.pop(next(iter(self._jobs)))
            await to_the_end(self._release(job, job.close()))
