"""Pushes through the service, without a server: the messages of each are handed out one by one, when a test says so."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from tests.server.engine.clock import Clock

from optd_server.engine.byte_budget import ByteBudget
from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.log import KeepsNothing, Log
from optd_server.engine.membership.members import Member
from optd_server.engine.memory import Memory
from optd_server.engine.offload import Offload
from optd_server.engine.options.groups import extent_of_groups
from optd_server.rpc.callers import ANONYMOUS
from optd_server.rpc.services.training import TrainingService
from optd_server.store.flat import FlatBuffers
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.messages import to_message
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import (
    Async,
    FlatRange,
    GroupInfo,
    GroupSpec,
    JobSpec,
    ParameterSpec,
    PushHeader,
    SharedGradient,
    Sync,
)

Message = Sequence[Frame]
Arrays = dict[str, np.ndarray]
"""By the names of parameters, which no two groups share here."""

GROUPS = (
    GroupSpec("g", {}, (ParameterSpec("a", (5,), "float32"), ParameterSpec("b", (2,), "float64"))),
    GroupSpec("h", {}, (ParameterSpec("c", (3,), "float32"),)),
    GroupSpec("i", {}, (ParameterSpec("d", (4,), "float64"), ParameterSpec("e", (1,), "float32"))),
)
NEW = GroupSpec("n", {}, (ParameterSpec("x", (3,), "float32"),))


async def settle(turns: int = 20) -> None:
    """Lets everything run that can."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.001)


def random_arrays(seed: int, groups: Sequence[GroupSpec] = GROUPS) -> Arrays:
    """Numbers of very different sizes: in another order their sum is another one."""
    rng = np.random.default_rng(seed)
    return {
        p.name: (rng.standard_normal(p.shape) * 10.0 ** rng.integers(-6, 7, p.shape)).astype(p.dtype)
        for group in groups
        for p in group.parameters
    }


def stepped(weights: Arrays, gradients: Sequence[Arrays]) -> Arrays:
    """A step of SGD with a rate of 1 on the mean, from left to right, over the gradients that have a parameter."""
    after = {}
    for name, values in weights.items():
        having = [gradient[name] for gradient in gradients if name in gradient]
        if not having:
            after[name] = values.copy()
            continue
        total = having[0].copy()
        for more in having[1:]:
            total = total + more
        mean = total * values.dtype.type(1 / len(having)) if len(having) > 1 else total
        after[name] = values - mean
    return after


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


class Upload:
    """One call that pushes."""

    def __init__(self, rounds: "Rounds", header: PushHeader, first: Message = (), *, last: bool = False) -> None:
        self._given: asyncio.Queue[Any] = asyncio.Queue()
        self._given.put_nowait((pb.PushRequest(header=to_message(header), last=last), list(first)))
        self.task = asyncio.get_running_loop().create_task(rounds.service.push(self, ANONYMOUS))

    # What a stream of requests does

    async def first(self) -> Any:
        return await self.next()

    async def next(self, *, patient: bool = False) -> Any:
        return await self._given.get()

    async def charge(self, job: ByteBudget) -> None:
        """What the messages take is counted in the tests of the budgets."""

    def give_back(self) -> None:
        pass

    def park(self) -> None:
        pass

    def unpark(self) -> None:
        pass

    # What a test does

    def send(self, frames: Message = (), *, last: bool = False) -> None:
        self._given.put_nowait((pb.PushRequest(last=last), list(frames)))

    def send_all(self, messages: Sequence[Message]) -> None:
        """Everything, and the end."""
        for frames in messages:
            self.send(frames)
        self.send(last=True)

    def break_off(self) -> None:
        self._given.put_nowait(None)

    def __await__(self) -> Any:
        return asyncio.wait_for(asyncio.shield(self.task), 10).__await__()

    async def error(self) -> Exception:
        """What it fails with."""
        async with asyncio.timeout(10):
            await asyncio.wait([self.task])
        error = self.task.exception()
        assert isinstance(error, Exception), f"it came through: {self.task.result()}"
        return error


class Rounds:
    """A sync job and its workers; without a number of them an async one."""

    def __init__(
        self,
        workers: int,
        *,
        groups: Sequence[GroupSpec] = GROUPS,
        seed: int = 0,
        limit: int = 1 << 30,
        log: Log | None = None,
        **defaults: Any,
    ) -> None:
        self.offload = Offload(2)
        self.clock = Clock()
        self.catalog = Catalog(
            memory=Memory(limit),
            offload=self.offload,
            clock=self.clock,
            lease_seconds=10,
            log_of=lambda _, __: KeepsNothing() if log is None else log,
        )
        self.service = TrainingService(self.catalog, 5)
        policy = Sync(workers) if workers else Async()
        self.spec = JobSpec("job", "sgd", {"lr": 1.0, **defaults}, tuple(groups), policy)
        self.first = random_arrays(1000 + seed, groups)
        self.job: Job

    async def create(self) -> None:
        with self.catalog.upload(self.spec) as upload:
            for index, group in enumerate(self.spec.groups):
                for parameter in lay_out(group.parameters).parameters:
                    upload.sink.write_all([Frame.of(index, parameter.offset, self.first[parameter.name].ravel())])
            self.job = await self.catalog.finish(upload)

    @property
    def weights(self) -> Arrays:
        found = {}
        current = self.job.snapshots.current
        for index, layout in enumerate(current.layouts):
            for segment, array in zip(layout.segments, current.arrays(index), strict=True):
                for member in segment.members:
                    parameter = layout.parameters[member]
                    start = parameter.offset - segment.offset
                    found[parameter.name] = array[start : start + parameter.size].reshape(parameter.shape).copy()
        return found

    @property
    def version(self) -> int:
        return self.job.version.version

    async def join(self, *names: str) -> None:
        for name in names:
            await self.job.join(name, None)

    def header(self, worker: str, *, base: int | None = None, **more: Any) -> PushHeader:
        """That of the worker's next push, or of its last one once again; `base`: of the newest weights by default."""
        member = self.member(worker)
        version = self.version if base is None else base
        return PushHeader("job", worker, member.epoch, member.sequence + 1, version, **more)

    def member(self, worker: str) -> Member:
        """What the job remembers of a worker that has joined."""
        found = self.job.state.members.find(worker)
        assert found is not None
        return found

    async def leave(self, worker: str) -> None:
        await self.job.workers.leave(worker, self.member(worker).epoch)

    def expire(self, worker: str) -> None:
        """Ends a lease as if its time had come."""
        self.job.leases.of(worker).until = self.clock.monotonic()
        self.job.workers.expire()

    def upload(self, worker: str, first: Message = (), *, last: bool = False, **more: Any) -> Upload:
        return Upload(self, self.header(worker, **more), first, last=last)

    def share(self, worker: str, gradient: Arrays) -> Upload:
        """A push whose gradient lies in shared memory."""
        sharing = self.job.sharing
        if not sharing.has(worker):
            sharing.confirm(worker, sharing.open(worker, self.member(worker).epoch).token)
        share = sharing._shares[worker]
        ranges = []
        for index, frame in self.frames(gradient):
            for number, extent in enumerate(share.buffers.extents):
                if not extent.first_group <= index < extent.first_group + len(extent.layouts):
                    continue
                layout, places = extent.layouts[index - extent.first_group], extent.places[index - extent.first_group]
                for segment, place in zip(layout.segments, places, strict=True):
                    if segment.offset <= frame.offset < segment.offset + segment.count:
                        start = place.start + frame.offset - segment.offset
                        share.buffers.slabs[number][place.slab][start : start + frame.count] = frame.values
            ranges.append(FlatRange(index, frame.offset, frame.count))
        return self.upload(worker, last=True, shared=SharedGradient(False, tuple(ranges)))

    def frames(self, gradient: Arrays) -> list[tuple[int, Frame]]:
        """A frame for each parameter of the gradient, in ascending order; by group."""
        found = []
        for index, layout in enumerate(self.job.state.groups.layouts):
            for parameter in sorted(layout.parameters, key=lambda p: p.offset):
                if parameter.name in gradient:
                    values = np.ascontiguousarray(gradient[parameter.name]).ravel()
                    found.append((index, Frame.of(index, parameter.offset, values)))
        return found

    def messages(self, gradient: Arrays) -> list[Message]:
        """A message for each parameter."""
        return [[frame] for _, frame in self.frames(gradient)]

    async def step(self, gradients: dict[str, Arrays]) -> None:
        """A whole round that must come out right."""
        expected = stepped(self.weights, [gradients[worker] for worker in sorted(gradients)])
        version = self.version
        uploads = [self.upload(worker) for worker in gradients]
        for upload, gradient in zip(uploads, gradients.values(), strict=True):
            upload.send_all(self.messages(gradient))
        for upload in uploads:
            assert (await upload).result.applied_version == version + 1
        assert same(self.weights, expected)
        assert self.version == version + 1

    async def add_group(self) -> GroupInfo:
        index = len(self.job.state.groups)
        weights = FlatBuffers([extent_of_groups([NEW], self.spec.algorithm, index)])
        return (await self.job.editor.add_group(NEW, weights, index))[0]

    def idle(self) -> bool:
        """Whether no push is under way, and every slot that was made is free or keeps the last gradient."""
        slots, pushes = self.job.slots, self.job.pushes
        free = [*slots._free, *([slots._kept[0]] if slots._kept is not None else [])]
        distinct = len({id(slot) for slot in free}) == len(free)
        return distinct and len(free) == slots._made and not pushes._under_way and not pushes._due._of

    async def close(self) -> None:
        await self.catalog.close()
        self.offload.close()


def play(scenario: Callable[[Rounds], Awaitable[None]], workers: int, **arguments: Any) -> None:
    """Runs a scenario on a loop of its own; afterwards nothing may be left of any push."""

    async def whole() -> None:
        rounds = Rounds(workers, **arguments)
        try:
            async with asyncio.timeout(20):
                await rounds.create()
                await scenario(rounds)
                await until(rounds.idle)
        finally:
            await rounds.close()

    asyncio.run(whole())
