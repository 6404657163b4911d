"""One job: its numbers, its workers, its pushes, and the changes that are no steps."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from optd_server.engine.dealing import check_matches
from optd_server.engine.model import Model
from optd_server.engine.offload import Offload
from optd_server.engine.option_changes import Origin
from optd_server.engine.options import algorithm_of
from optd_server.engine.plan import Memory
from optd_server.engine.pushes import Pushes
from optd_server.engine.registration import (
    LISTED,
    check_beside,
    check_group,
    check_options,
    check_same,
    check_same_group,
)
from optd_server.engine.rejections import Rejections
from optd_server.engine.sharing import Share, Sharing
from optd_server.engine.workers import Worker, Workers, Written
from optd_server.engine.writer import Writer
from optd_server.store.flat import Array, FlatBuffers
from optd_wire.errors import JobInUse, JobMismatch, NonfiniteGradient, OptdError, UnknownJob
from optd_wire.values import (
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobInfo,
    JobOptions,
    JobSpec,
    JobSummary,
    JobUpdate,
    JobVersion,
    WorkerInfo,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

TOUCHED_BYTES = 16 << 20
"""What a job must be planned with for its memory to be touched ahead of its first step."""


class Job:
    """A job that is whole: it was created with all of its weights."""

    def __init__(
        self,
        model: Model,
        *,
        memory: Memory,
        offload: Offload,
        lease_seconds: float,
        wall: float,
        id: str = "",  # noqa: A002 - as the contract calls it
        first_epoch: int = 0,
    ) -> None:
        self.model = model
        self.workers = Workers(model.name, lease_seconds, first_epoch)
        self.rejections = Rejections()
        self.closed = asyncio.Event()
        self._writer = Writer()
        self.pushes = Pushes(model, self.workers, self._writer, offload)
        self.sharing = Sharing(model, self.workers, memory)
        self._memory = memory
        self.offload = offload
        self.id = id
        """Tells it from jobs that had its name before."""
        self._created = wall
        self._idle_since: float | None = None
        self._touching: asyncio.Task[None] | None = None
        self._untouched: list[Array] = self._prepare_state()
        self._created_with = len(model.groups)

    @property
    def name(self) -> str:
        """The job's name."""
        return self.model.name

    def info(self) -> JobInfo:
        """The job with its groups and parameters."""
        return JobInfo(
            name=self.name,
            algorithm=self.model.groups.algorithm.name,
            defaults=self.model.groups.defaults,
            policy=self.model.policy,
            groups=self.model.groups.infos(),
            version=self.model.version,
            options=self.model.conditioning.options,
            averages=self.model.averages.infos(),
            ephemeral=self.model.ephemeral,
            stepped_unix_ms=int(self.model.stepped_wall * 1000),
            id=self.id,
        )

    def summary(self) -> JobSummary:
        """One line about the job."""
        groups = self.model.groups
        return JobSummary(
            name=self.name,
            algorithm=groups.algorithm.name,
            policy=self.model.policy,
            version=self.model.version,
            groups=len(groups),
            parameters=groups.parameters,
            elements=groups.elements,
            workers=self.workers.active,
            pushes=self.pushes.applied,
            rejections=self.rejections.total,
            planned_bytes=self.model.plan.bytes,
            created_unix_ms=int(self._created * 1000),
            failure=self.pushes.failure,
            gradients=self.model.conditioning.summary(),
            ephemeral=self.model.ephemeral,
            stepped_unix_ms=int(self.model.stepped_wall * 1000),
        )

    def worker_infos(self, now: float) -> tuple[WorkerInfo, ...]:
        """All workers that have joined, in the order of their names."""
        in_order = sorted(self.workers, key=lambda worker: worker.name)
        return tuple(self.workers.info(worker, now, waiting=self.pushes.waits(worker.name)) for worker in in_order)

    @contextmanager
    def noting_rejections(self, worker: str, clock: Callable[[], float]) -> Iterator[None]:
        """Counts an error that the block raises among the job's rejections; `clock` tells wall time."""
        try:
            yield
        except OptdError as error:
            found = self.workers.find(worker)
            if found is not None:
                found.rejections += 1
            version, wall = self.model.version.version, clock()
            self.rejections.add(error, worker=worker, version=version, wall=wall)
            if isinstance(error, NonfiniteGradient):
                self.model.conditioning.note_refusal(error, worker, version, wall)
            self.model.notify()
            raise

    # Workers

    async def join(self, name: str, spec: JobSpec | None, now: float) -> Worker:
        """Takes a worker in, under a new epoch; raises `JobMismatch` unless the job is what `spec` registers.

        Happens between two steps: a push of the old epoch has been applied by then, or never will be.
        """

        async def action() -> Worker:
            if spec is not None:
                check_same(spec, self.info(), self._created_with)
            self.pushes.withdraw(name, "its worker joined again")
            self.sharing.close(name)
            worker = self.workers.join(name, now)
            self._idle_since = None
            self.model.notify()
            return worker

        worker = await self._writer.run(action)
        self._touch_for_messages()
        return worker

    # Memory that the first step would wait for

    async def touch_state(self) -> None:
        """Has the state of the first step get its memory now."""
        arrays, self._untouched = self._untouched, []
        await self.offload.touch(arrays)

    def _prepare_state(self) -> list[Array]:
        """Called while no step runs."""
        return self.model.groups.prepare_state() if self.model.plan.bytes >= TOUCHED_BYTES else []

    def _touch_for_messages(self) -> None:
        """Begins to get memory for a first step whose numbers come in messages, unless there has been a step.

        In the background: a worker computes its first gradient meanwhile, or opens shared memory, which cancels this.
        """
        model = self.model
        if model.version.version or model.plan.bytes < TOUCHED_BYTES or self.closed.is_set():
            return
        if model.snapshots.shared or self._touching is not None:
            return
        arrays = model.snapshots.prepare()
        slot = model.slots.prepare()
        if slot is not None:
            try:
                slot.fit(model.groups.extents)
            except OSError as problem:  # which the push finds out, too
                logger.info("no memory for the first gradient of job %s yet: %s", self.name, problem)
        arrays += [] if slot is None else slot.buffers.all_slabs()
        self._touching = asyncio.get_running_loop().create_task(self.offload.touch(arrays))

    async def touched(self) -> None:
        """Waits until a first step whose numbers come in messages finds its memory, where that has begun."""
        if self._touching is not None:
            await asyncio.wait([self._touching])

    async def _end_touching(self) -> None:
        if self._touching is not None and not self._touching.done():
            self._touching.cancel()
            await asyncio.wait([self._touching])
            self._touching = None

    def check_free_for(self, worker: str, now: float) -> None:
        """Raises `JobInUse` while workers other than `worker` hold a lease."""
        others = [other for other in self.workers if other.active and other.name != worker]
        if others:
            left = max(other.lease_until for other in others) - now
            names = ", ".join(sorted(other.name for other in others)[:LISTED])
            raise JobInUse(job=self.name, workers=names, seconds=f"{max(left, 0):.0f}")

    def leave(self, name: str, epoch: int, now: float) -> None:
        """Ends a worker's lease."""
        worker = self.workers.check(name, epoch, now)
        self.pushes.withdraw(name, "its worker left")
        self.sharing.close(name)
        self.workers.leave(worker)
        self.model.notify()

    def expire(self, now: float) -> None:
        """Ends the leases that have run out."""
        for worker in self.workers.expire(now):
            self.pushes.withdraw(worker.name, "its worker's lease ran out")
            self.sharing.close(worker.name)
            self.model.notify()
        if self.workers.active:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now

    def idle_seconds(self, now: float) -> float:
        """For how long no worker has held a lease, as far as `expire` has seen."""
        return 0.0 if self._idle_since is None else now - self._idle_since

    async def open_shared_memory(self, name: str, epoch: int, now: float) -> Share:
        """Gives a worker memory to share, and lays the weights where it can see them; raises what `open` raises."""

        async def action() -> Share:
            worker = self.workers.check(name, epoch, now)
            await self._end_touching()
            if not self.model.snapshots.shared:
                try:
                    await self.offload.run(self.model.cost(self.model.elements), self.model.snapshots.share)
                except OSError as problem:  # no descriptors left, or no memory
                    raise self.sharing.unavailable(worker, problem) from None
            is_large = self.model.plan.bytes >= TOUCHED_BYTES
            if is_large:
                await self.offload.touch(self.model.snapshots.prepare())
            # It may have left meanwhile.
            share = self.sharing.open(self.workers.check(name, epoch, now))
            if is_large:
                await self.offload.touch(share.buffers.all_slabs())
            return share

        return await self._writer.run(action)

    # Changes that are no steps

    async def update_group(self, update: GroupUpdate, wall: float = 0.0) -> tuple[GroupOptions, JobVersion]:
        """Changes options of a group, from the next step on; `wall` is the time, in seconds of the epoch."""

        async def action() -> tuple[GroupOptions, JobVersion]:
            groups = self.model.groups
            changes = groups.plan_updates((update,), self.name, self.model.version.version)
            self.model.change_options(changes, [(update, Origin(wall))])
            return groups.options[groups.index(update.group, self.name)], self.model.version

        return await self._writer.run(action)

    async def update(self, update: JobUpdate, wall: float = 0.0) -> tuple[JobOptions, JobVersion]:
        """Changes options of the job as a whole, from the next step on; `wall` is as in `update_group`."""

        async def action() -> tuple[JobOptions, JobVersion]:
            await self.pushes.update(update, Origin(wall))
            return self.model.conditioning.options, self.model.version

        return await self._writer.run(action)

    def existing_group(self, spec: GroupSpec) -> GroupInfo | None:
        """The group that `spec` adds, where the job has it already; raises `JobMismatch` where it has another."""
        for info in self.model.groups.infos():
            if info.options.group == spec.name:
                check_same_group(spec, self.name, self.model.groups.algorithm.name, info)
                return info
        return None

    def check_new_group(self, spec: GroupSpec) -> None:
        """Raises what is wrong with a group that is to be added."""
        groups = self.model.groups
        own = algorithm_of(spec, groups.algorithm)
        check_beside([*groups.distinct_algorithms, own], [*groups.names, spec.name])
        check_group(spec, self.name, own, groups.holders())
        check_matches([check_options(spec, groups.algorithm, groups.defaults)], groups.matches())
        self._memory.check(self.model.plan, self.model.bytes_with(spec))

    async def add_group(self, spec: GroupSpec, weights: FlatBuffers, index: int) -> tuple[GroupInfo, bool]:
        """Adds a group with its weights; returns it, and False where the job has had it already.

        Raises `JobMismatch` where it would not have `index` any more, which its frames were addressed to.
        """

        async def action() -> tuple[GroupInfo, bool]:
            existing = self.existing_group(spec)
            if existing is not None:
                return existing, False
            self.check_new_group(spec)
            if len(self.model.groups) != index:
                count = len(self.model.groups)
                raise JobMismatch(job=self.name, aspect="the number of groups", theirs=count, ours=index)
            info = self.model.add_group(spec, weights)
            self._untouched = self._prepare_state()
            return info, True

        return await self._writer.run(action)

    async def between_steps(self, elements: int, work: Callable[[], T]) -> T:
        """Runs `work`, which reads or changes state, while no step runs."""

        async def action() -> T:
            with self.model.slots.reading():
                return await self.offload.run(self.model.cost(elements), work)

        return await self._writer.run(action)

    async def replace_weights(
        self,
        elements: int,
        work: Callable[[FlatBuffers, FlatBuffers], None],
        check: Callable[[Sequence[tuple[int, GroupOptions]]], None],
        updates: Sequence[tuple[GroupUpdate, Origin]] = (),
        *,
        is_done: Callable[[], Awaitable[bool]] | None = None,
        worker: str = "",
        write_id: str = "",
    ) -> Written:
        """Runs `work(current weights, next weights)` while no step runs; publishes the next weights, and `updates`.

        `work` writes all of the next weights and may change state; it must not fail half-way. `check` is told what
        the updates change, and raises where it has become wrong to do all this since it was asked for, or does not
        fit; where it `is_done` already, nothing happens. A repeat of the worker's last write, by its `write_id`,
        changes nothing either. Returns the options of all groups.
        """

        async def action() -> Written:
            model, snapshots = self.model, self.model.snapshots
            writer = self.workers.find(worker)
            known = None if writer is None else writer.answer_to(write_id)
            if known is not None:
                return known
            if is_done is not None and await is_done():
                return tuple(model.groups.options), model.version
            weights = await snapshots.spare()
            changes = model.groups.plan_updates([update for update, _ in updates], self.name, model.version.version)
            check(changes)
            weights.numbers.clear()
            current = snapshots.current.weights.buffers
            await self.offload.run(model.cost(elements), lambda: work(current, weights.buffers))
            model.change_options(changes, updates, weights)
            answer = tuple(model.groups.options), model.version
            if write_id and writer is not None:
                writer.written = write_id, answer
            return answer

        return await self._writer.run(action)

    async def close(self) -> None:
        """Lets a step that runs come to its end; everything that waits fails with `UnknownJob`."""
        gone = UnknownJob(job=self.name)
        self.closed.set()
        self.model.snapshots.close(gone)
        await self._writer.close(gone)
        self.pushes.fail_all(gone)
        self.sharing.close_all()
        await self._end_touching()
        self.model.release_all()
        self._memory.release(self.model.plan)
