"""Random traffic of one job: what workers and people do to it, in any order, rightly or not."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tests.server.engine.clock import Clock
from tests.server.engine.folding import specs
from tests.server.engine.folding.comparing import as_text, bare
from tests.server.engine.folding.gradients import Payload, gradient, received, share_out, shared_ranges
from tests.server.engine.folding.recording import Recorder
from tests.server.engine.folding.specs import Rng, chance, one

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.memory import Memory, Reservation
from optd_server.engine.offload import Offload
from optd_server.engine.options.groups import extent_of_groups
from optd_server.engine.readers.state import read_state, select
from optd_server.engine.rounds.policies.sync import SyncPolicy
from optd_server.engine.state_upload import StateUpload
from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.errors import OptdError, ShuttingDown
from optd_wire.frames import Frame
from optd_wire.values import (
    WEIGHTS,
    GroupSpec,
    GroupState,
    GroupUpdate,
    JobSpec,
    JobUpdate,
    PushHeader,
    PushResult,
    WriteStateHeader,
)

WORKERS = ("a", "b", "c", "d")
LEASE = 10.0
Mark = tuple[str, int, int]
Replies = dict[Mark, list[PushResult]]
KINDS = (
    *("round", "push", "push") * 3,
    *("repeat", "flush", "set_group", "set_group", "set_job", "set_job", "join", "join", "share", "write", "write"),
    *("add_group", "leave", "expire", "policy", "refused", "delete"),
)
"""What may happen, the more often the more often it stands here."""


@dataclass(frozen=True)
class Sent:
    """A push as it was sent."""

    header: PushHeader
    payload: Payload


class Traffic:
    """A catalog with a job, which is created anew when it was deleted. `recorders` has the log of each."""

    def __init__(self, spec: JobSpec, rng: Rng, *, kernels: Backend, threads: int, every: int, calm: bool) -> None:
        self.spec = spec
        self.calm = calm
        """Whether gradients are those of an objective that falls, and few things go wrong."""
        self.replies: list[Replies] = []
        self.recorders: list[Recorder] = []
        self.refusals: list[str] = []
        self._rng, self._every = rng, every
        self._clock = Clock()
        self._offload = Offload(threads, kernels)
        self.catalog = Catalog(
            memory=Memory(1 << 30),
            offload=self._offload,
            clock=self._clock,
            lease_seconds=LEASE,
            log_of=self._log_of,
        )
        self.job: Job
        self.groups: list[GroupSpec] = []
        self._last: dict[str, Sent] = {}
        self._written: WriteStateHeader | None = None
        self._tasks: dict[asyncio.Task[None], Mark] = {}

    def _log_of(self, name: str, _: str) -> Recorder:
        assert name == self.spec.name
        self.recorders.append(Recorder(self._every))
        self.replies.append({})
        return self.recorders[-1]

    async def create(self) -> None:
        """Raises OptdError if the job cannot be."""
        self.groups = list(self.spec.groups)
        with self.catalog.upload(self.spec, f"id-{len(self.recorders)}") as upload:
            for index, group in enumerate(self.groups):
                upload.sink.write_all(specs.weights(self._rng, group, index))
            self.job = await self.catalog.finish(upload)
        self.recorders[-1].job = self.job

    async def twin(self) -> "Traffic":
        """As this one, with a job that goes on from a copy of the state, and with nothing else that the job had.

        Pushes that wait are refused. What workers were told goes along, or they would be told once more.
        """
        self.job.pushes.refuse_waiting(ShuttingDown())
        await self._settle()
        made = Traffic(self.spec, self._rng, kernels=BLOCKED, threads=1, every=self._every, calm=self.calm)
        made.groups, made._last = list(self.groups), dict(self._last)
        made._clock.seconds, made._clock.wall_seconds = self._clock.seconds, self._clock.wall_seconds
        reservation = Reservation(f"job {self.spec.name!r}")
        made.catalog.memory.reserve(reservation, self.job.memory.bytes)
        made.job = Job(
            self.job.state.copy(),
            log=made._log_of(self.spec.name, self.job.id),
            position=0,
            memory=made.catalog.memory,
            reservation=reservation,
            offload=made._offload,
            clock=made._clock,
            lease_seconds=LEASE,
            inflight=made.catalog.budgets.of_job(self.spec.name),
        )
        for worker in self.job.state.members.by_name:
            made.job.leases.of(worker)  # leases end in the order in which their workers came
        for worker in self.job.leases.holders():
            made.job.leases.begin(worker, 0.0)
            made.job.leases.of(worker).until = self.job.leases.of(worker).until
            made.job.pushes.waiting.resumed(worker)
        mine, its = self.job.pushes.waiting.policy, made.job.pushes.waiting.policy
        if isinstance(its, SyncPolicy):
            its._lateness._told = deepcopy(mine._lateness._told)  # type: ignore[attr-defined]
        made.catalog._jobs[self.spec.name] = made.recorders[-1].job = made.job
        return made

    async def happen(self, kind: str, rng: Rng) -> None:
        """Something happens; what is refused is noted."""
        self._clock.pass_to(self._clock.seconds + float(rng.random()))
        action: Callable[[Rng], Coroutine[Any, Any, None]] = getattr(self, f"_{kind}")
        try:
            await action(rng)
        except OptdError as error:
            self.refusals.append(f"{kind}: {type(error).__name__}: {error}")
        await self._settle()

    async def end(self) -> None:
        """Lets all that is under way come to its end."""
        for worker in self._holders:
            await self.job.workers.leave(worker, self.job.state.members.by_name[worker].epoch)
        if self._tasks:
            async with asyncio.timeout(10):  # else a push hangs
                await asyncio.gather(*self._tasks)
        for recorder in self.recorders:
            recorder.end()

    async def close(self) -> None:
        await self.catalog.close()
        self._offload.close()

    async def _settle(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)
        if self._offload.threads > 1 and self._tasks:
            await asyncio.wait(self._tasks, timeout=0.005)
        for task in [task for task in self._tasks if task.done()]:
            del self._tasks[task]
            task.result()

    # Workers

    async def _join(self, rng: Rng) -> None:
        await self.job.join(one(rng, WORKERS), self.spec if chance(rng, 0.3) else None)

    async def _leave(self, rng: Rng) -> None:
        await self.job.workers.leave(*self._identity(await self._worker(rng)))

    async def _expire(self, rng: Rng) -> None:
        """Time goes by; some workers renew their leases meanwhile."""
        self._clock.pass_to(self._clock.seconds + LEASE * 0.6)
        for worker in self._holders:
            if chance(rng, 0.5):
                self.job.workers.check(*self._identity(worker))
        self._clock.pass_to(self._clock.seconds + LEASE * 0.6)
        await self.catalog.expire()

    async def _worker(self, rng: Rng) -> str:
        """A worker that holds a lease: one joins if none does."""
        if not self._holders:
            await self.job.join(one(rng, WORKERS), None)
        return one(rng, self._holders)

    @property
    def _holders(self) -> list[str]:
        """The workers that hold a lease, whatever order they came in."""
        return sorted(self.job.leases.holders())

    def _identity(self, worker: str) -> tuple[str, int]:
        return worker, self.job.state.members.by_name[worker].epoch

    # Pushes

    async def _push(self, rng: Rng) -> None:
        self._send(rng, await self._worker(rng))

    async def _round(self, rng: Rng) -> None:
        """As many workers push as the policy waits for."""
        most = self.job.pushes.waiting.policy.most
        for worker in WORKERS:
            if len(self._holders) < most:
                await self.job.join(worker, None)
        for worker in rng.permutation(self._holders)[:most]:
            self._send(rng, str(worker))

    async def _flush(self, rng: Rng) -> None:
        most = self.job.pushes.waiting.policy.most
        for worker in rng.permutation([await self._worker(rng), *self._holders])[:most]:
            self._start(Sent(self._header(rng, str(worker), flush=True), received(())))

    async def _repeat(self, rng: Rng) -> None:
        worker = await self._worker(rng)
        if worker in self._last:
            self._start(self._last[worker], again=True)

    async def _refused(self, rng: Rng) -> None:
        """A push that nobody may send like this, or of which not all arrives."""
        worker = await self._worker(rng)
        sent = self._made(rng, worker)
        header, payload = sent.header, received(sent.payload.frames)
        match int(rng.integers(7)):
            case 0:
                header = replace(header, sequence=header.sequence + 3)
            case 1:
                header = replace(header, base_version=self.job.state.version + 1)
            case 2:
                header = replace(header, epoch=header.epoch - 1)
            case 3:
                header = replace(header, worker="nobody")
            case 4:
                header = replace(header, updates=(GroupUpdate(self.groups[0].name, {"lr": -1.0}),))
            case 5:
                payload = received([Frame.of(9, 0, np.ones(1, "f4"))])
            case 6:
                payload = received(sent.payload.frames, breaks=True)
        self._start(Sent(header, payload))

    def _send(self, rng: Rng, worker: str) -> None:
        if not self.job.pushes.waiting.waits(worker):  # its memory is read until it is answered
            self._start(self._made(rng, worker))

    def _made(self, rng: Rng, worker: str) -> Sent:
        calm = self.calm or self.job.state.groups.iterative is not None
        pushed = gradient(rng, self.job, self.groups, calm=calm)
        header = self._header(rng, worker, loss=pushed.loss, scale=pushed.scale)
        would_share, pieces = chance(rng, 0.7), int(rng.integers(1, 3))
        if would_share and self.job.sharing.has(worker) and not pushed.rows:
            share = self.job.sharing._shares[worker]
            shared = shared_ranges(share.buffers.extents, pushed)
            share_out(share.buffers, pushed)
            return Sent(replace(header, shared=shared), Payload(shared=True))
        return Sent(header, received([*pushed.frames, *pushed.rows], pieces=pieces))

    def _header(
        self, rng: Rng, worker: str, *, flush: bool = False, loss: float | None = None, scale: float | None = None
    ) -> PushHeader:
        state = self.job.state
        member = state.members.by_name[worker]
        updates: tuple[GroupUpdate, ...] = ()
        if chance(rng, 0.2):
            updates = (self._group_update(rng),)
        version = state.version
        if state.groups.iterative is None and chance(rng, 0.3):
            version = max(0, version - int(rng.integers(3)))
        return PushHeader(
            self.spec.name,
            worker,
            member.epoch,
            member.sequence + 1,
            version,
            updates=updates,
            known_revision=state.revision if state.groups.iterative or chance(rng, 0.7) else 0,
            weight=one(rng, (None, 1.0, 2.0, 0.5)) if not flush and chance(rng, 0.4) else None,
            loss_scale=scale,
            loss=loss,
            begins=chance(rng, 0.1),
            flush=flush,
            norms=chance(rng, 0.3),
            fragment=int(rng.integers(3)) if state.groups.iterative is None and chance(rng, 0.3) else 0,
        )

    def _start(self, sent: Sent, *, again: bool = False) -> None:
        header = sent.header
        self._last[header.worker] = sent
        mark = (header.worker, header.epoch, header.sequence)
        task = asyncio.get_running_loop().create_task(self._pushed(sent, mark, self.job, self.replies[-1], again))
        self._tasks[task] = mark

    async def _pushed(
        self, sent: Sent, mark: Mark, job: Job, replies: dict[Mark, list[PushResult]], again: bool
    ) -> None:
        header = sent.header
        try:
            with job.noting_rejections(header.worker):
                if sent.payload.shared:
                    assert header.shared is not None
                    reply = await job.push_shared(header, header.shared)
                else:
                    reply = await job.push(header, sent.payload.upload())
        except OptdError as error:
            self.refusals.append(f"push: {type(error).__name__}: {error}")
            return
        replies.setdefault(mark, []).append(reply)
        known = job.state.members.find(header.worker)
        if not again and known is not None and (known.epoch, known.sequence) == mark[1:]:
            assert known.reply is not None and as_text(bare(known.reply)) == as_text(bare(reply))

    # Options, groups, the policy

    def _group_update(self, rng: Rng) -> GroupUpdate:
        index = int(rng.integers(len(self.groups)))
        options = self.job.state.groups.options[index]
        changes = dict(specs.group_options(rng, options.algorithm))
        expected = one(rng, (None, None, options.revision, max(0, options.revision - 1)))
        return GroupUpdate(options.group, changes, expected)

    async def _set_group(self, rng: Rng) -> None:
        await self.job.editor.update_group(self._group_update(rng))

    async def _set_job(self, rng: Rng) -> None:
        alone = self.job.state.groups.iterative is not None
        await self.job.editor.update_job(JobUpdate(self.spec.name, dict(specs.job_options(rng, alone=alone))))

    async def _policy(self, rng: Rng) -> None:
        await self.job.editor.set_policy(specs.policy(rng))

    async def _add_group(self, rng: Rng) -> None:
        index = len(self.groups)
        group = specs.group(rng, specs.algorithm_for(rng, one(rng, (self.spec.algorithm, specs.MIXED))), index)
        self.job.editor.check_new_group(group)
        weights = FlatBuffers([extent_of_groups([group], self.spec.algorithm, index)])
        FrameSink(weights, WEIGHTS, [group.name], first_group=index).write_all(specs.weights(rng, group, index))
        await self.job.editor.add_group(group, weights, index)
        self.groups.append(group)

    # Memory and numbers

    async def _share(self, rng: Rng) -> None:
        worker = await self._worker(rng)
        share = await self.job.open_shared_memory(*self._identity(worker))
        self.job.sharing.confirm(worker, share.token)

    async def _write(self, rng: Rng) -> None:
        """Weights, or all state with steps and averages, perhaps options, perhaps a second time."""
        job, worker = self.job, await self._worker(rng)
        frames: list[Any] = []
        for index, group in enumerate(self.groups):
            if chance(rng, 0.6):
                frames += specs.weights(rng, group, index)
        groups: Sequence[GroupState] = ()
        averages: Sequence[Any] = ()
        if chance(rng, 0.6):
            kept = [info.name for info in job.state.averages.infos()]
            reading = await read_state(job, select(job, (*job.state.groups.state_names, *kept), "", ""), _no_patience)
            groups, averages = reading.result.groups, reading.result.averages if chance(rng, 0.6) else ()
            written = {info.name for info in averages if info.updates}
            frames += [frame for frame in reading.frames if frame.field not in kept or frame.field in written]
            groups = tuple(replace(each, steps=tuple(rng.integers(0, 9, len(each.steps)).tolist())) for each in groups)
        header = WriteStateHeader(
            self.spec.name,
            *self._identity(worker),
            tuple(groups),
            tuple(averages),
            (self._group_update(rng),) if chance(rng, 0.3) else (),
            job.state.job_version if chance(rng, 0.3) else None,
            f"write-{rng.integers(1 << 30)}" if chance(rng, 0.5) else "",
            beside_others=chance(rng, 0.5),
        )
        await self._put(header, frames)
        if header.write_id and chance(rng, 0.5):
            await self._put(header, frames)

    async def _put(self, header: WriteStateHeader, frames: Sequence[Frame]) -> None:
        upload = StateUpload(self.job, header, self._clock.wall())
        with upload.room(self.catalog.memory):
            upload.write(frames)
            await upload.put_in_force()

    async def _delete(self, rng: Rng) -> None:
        """The job ends, and another one has its name."""
        if len(self.recorders) < 3 and chance(rng, 0.3):
            await self.catalog.delete(self.spec.name)
            await self._settle()
            self._last.clear()
            await self.create()


async def _no_patience() -> None:
    pass
