"""The order of an event: appended, applied, published once, answered when it is durable; and what a log costs."""

import asyncio
import tracemalloc

import numpy as np
import pytest
from tests.server.engine.conftest import Engine
from tests.server.engine.folding.comparing import difference, frozen

from optd_server.engine import offload
from optd_server.engine.catalog import Catalog
from optd_server.engine.events import Created, GroupAdded, RoundAdded, Stepped
from optd_server.engine.memory import Memory
from optd_server.engine.options.groups import extent_of_groups
from optd_server.engine.state_upload import StateUpload
from optd_server.store import flat
from optd_server.store.flat import FlatBuffers
from optd_wire.frames import Frame
from optd_wire.values import (
    Async,
    FlatRange,
    GroupSpec,
    GroupUpdate,
    JobSpec,
    JobUpdate,
    ParameterSpec,
    PushHeader,
    SharedGradient,
    Sync,
    WriteStateHeader,
)


class Log:
    """A log that does what a test says."""

    def __init__(self):
        self.keeps_events = True
        self.durable_version = 0
        self.appended = []
        """Each event with the version that it leads to."""
        self.waits = []
        self.look = lambda event: None
        """Called with each event, before it is applied."""
        self.open = asyncio.Event()
        """What is appended is durable once it is set."""
        self.room = asyncio.Event()
        """Appending goes on once it is set."""
        self.room.set()

    async def append(self, event, version, before):
        self.appended.append((event, version))
        self.look(event)
        await self.room.wait()
        return len(self.appended)

    def take_back(self, version):
        self.appended.pop()

    async def wait(self, position):
        self.waits.append(position)
        await self.open.wait()

    def last(self, kind):
        return next(event for event, _ in reversed(self.appended) if isinstance(event, kind))


@pytest.fixture
def logged(play):
    """As `play`, for a scenario that gets an engine and the log of its job."""

    def run(scenario):
        async def with_log(engine):
            log = Log()
            engine.catalog = catalog_with(engine, log)
            await scenario(engine, log)
            log.open.set()
            log.room.set()

        play(with_log)

    return run


def catalog_with(engine: Engine, log: object) -> Catalog:
    return Catalog(
        memory=Memory(1 << 30), offload=engine.offload, clock=engine.clock, lease_seconds=10, log_of=lambda *_: log
    )


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def joined(engine, log, *workers, policy=None, **defaults):
    log.open.set()
    job = await engine.create(policy or Async(), **defaults)
    for worker in workers:
        await job.join(worker, None)
    log.open.clear()
    return job


# Durability


def test_steps_go_on_while_the_answer_of_the_first_waits(logged):
    async def scenario(engine, log):
        job = await joined(engine, log, "a", "b")
        first = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        second = asyncio.create_task(engine.push(job, "b", 1))
        await settle()
        assert job.state.version == job.version.version == 2
        assert not first.done() and not second.done()
        log.durable_version = 2
        log.open.set()
        replies = await first, await second
        assert [reply.version.version for reply in replies] == [1, 2]
        assert [reply.version.durable_version for reply in replies] == [2, 2]

    logged(scenario)


def test_an_answer_has_the_durable_version_of_when_it_leaves(logged):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        log.open.set()
        assert (await engine.push(job, "a", 1)).version.durable_version == 0
        log.durable_version = 1
        again = await engine.push(job, "a", 1)
        assert again.repeat and (again.version.version, again.version.durable_version) == (1, 1)
        assert job.version.durable_version == job.info().version.durable_version == 1
        assert job.state.members.by_name["a"].reply.version.durable_version == 0, "the state knows nothing of it"

    logged(scenario)


def test_a_repeat_waits_for_what_it_repeats(logged):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        first = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        again = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        assert job.state.version == 1 and not first.done() and not again.done()
        log.open.set()
        assert not (await first).repeat and (await again).repeat

    logged(scenario)


@pytest.mark.parametrize("what", ["join", "leave", "group", "job", "policy", "add", "write"])
def test_each_change_is_answered_when_it_is_durable(logged, what):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        spec = GroupSpec("n", {}, (ParameterSpec("x", (3,), "float32"),))
        upload = StateUpload(job, WriteStateHeader("job", "a", 1, ()), 0.0)
        upload.write([Frame.of(0, 0, np.ones(4, "f4"))])
        calls = {
            "join": lambda: job.join("b", None),
            "leave": lambda: job.workers.leave("a", 1),
            "group": lambda: job.editor.update_group(GroupUpdate("g", {"lr": 0.5})),
            "job": lambda: job.editor.update_job(JobUpdate("job", {"ema_decay": 0.5})),
            "policy": lambda: job.editor.set_policy(Sync(2)),
            "add": lambda: job.editor.add_group(spec, FlatBuffers([extent_of_groups([spec], "sgd", 2)]), 2),
            "write": upload.put_in_force,
        }
        before = len(log.appended)
        call = asyncio.create_task(calls[what]())
        await settle()
        assert len(log.appended) == before + 1 and log.waits[-1] == before + 1
        assert not call.done()
        log.open.set()
        await call

    logged(scenario)


def test_a_job_is_created_and_deleted_when_that_is_durable(logged):
    async def scenario(engine, log):
        created = asyncio.create_task(engine.create(Async()))
        await settle()
        assert log.waits == [1] and not created.done()
        log.open.set()
        job = await created
        log.open.clear()
        deleted = asyncio.create_task(engine.catalog.delete("job"))
        await settle()
        assert log.waits == [1, 2] and not deleted.done() and len(engine.catalog) == 0
        log.open.set()
        assert (await deleted).name == job.name

    logged(scenario)


# Order


def test_an_event_is_appended_before_anything_of_it_is_applied(logged):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        log.open.set()
        before, published, seen = frozen(job.state), job.snapshots.current, []

        def look(event):
            assert not difference(before, frozen(job.state))
            assert job.snapshots.current is published
            seen.append(event)

        log.look = look
        log.room.clear()
        pushed = asyncio.create_task(engine.push(job, "a", 1, updates=(GroupUpdate("g", {"lr": 0.5}),)))
        changed = asyncio.create_task(job.editor.update_job(JobUpdate("job", {"ema_decay": 0.5})))
        await settle()
        # The log is slow: neither this event is applied, nor is the next one begun.
        assert len(seen) == 1 and log.appended[-1] == (seen[0], 1)
        assert not difference(before, frozen(job.state)) and job.snapshots.current is published
        log.look = lambda *_: None
        log.room.set()
        assert (await pushed).applied_version == 1
        await changed
        assert job.state.options.options["ema_decay"] == 0.5

    logged(scenario)


def test_an_event_that_cannot_be_appended_changes_nothing(logged):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        log.open.set()
        before = frozen(job.state)

        def look(_):
            raise OSError("the disk is full")

        log.look = look
        with pytest.raises(OSError, match="the disk is full"):
            await job.editor.update_group(GroupUpdate("g", {"lr": 0.5}))
        with pytest.raises(OSError, match="the disk is full"):
            await job.join("b", None)
        assert not difference(before, frozen(job.state))
        log.look = lambda *_: None
        assert (await engine.push(job, "a", 1)).version.version == 1

    logged(scenario)


@pytest.mark.parametrize("threads", [False, True])
def test_weights_and_options_change_together_and_once(logged, monkeypatch, threads):
    if threads:
        monkeypatch.setattr(offload, "INLINE_ELEMENTS", -1)

    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        log.open.set()
        before, seen = job.snapshots.current, []
        job.fold.watch(lambda: seen.append(job.snapshots.current))
        pushed = asyncio.create_task(engine.push(job, "a", 1, updates=(GroupUpdate("g", {"lr": 0.5}),)))
        while not pushed.done():
            seen.append(job.snapshots.current)
            await asyncio.sleep(0)
        after = job.snapshots.current
        assert {id(each) for each in seen} <= {id(before), id(after)}
        assert seen.index(after) > 0 and before not in seen[seen.index(after) :]
        assert (after.version.version, after.version.revision, after.options[0].options["lr"]) == (1, 1, 0.5)
        assert (before.version.version, before.version.revision, before.options[0].options["lr"]) == (0, 0, 1.0)
        assert after.weights is not before.weights and after.arrays(0)[0][0] == -0.5

    logged(scenario)


# What an event costs


def lies_in(arrays, memory) -> bool:
    return all(
        np.shares_memory(array, there)
        for row, other in zip(arrays, memory, strict=True)
        for array, there in zip(row, other, strict=True)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_event_holds_the_memory_that_the_gradient_was_received_in(logged, accumulate):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        log.open.set()
        await job.editor.update_job(JobUpdate("job", {"accumulate": accumulate}))
        found = []

        def look(event):
            rounds = set(job.pushes._due._of.values())
            found.extend(lies_in(event.gradient.slabs, round_.slot.buffers.slabs) for round_ in rounds)

        log.look = look
        for sequence in (1, 2):
            await engine.push(job, "a", sequence)
        assert found == [True, True]
        assert isinstance(log.appended[-2][0], Stepped if accumulate == 1 else RoundAdded)

    logged(scenario)


@pytest.mark.parametrize("keeps_events", [False, True])
def test_a_gradient_that_a_worker_shares_is_copied_only_for_a_log_that_keeps_it(logged, keeps_events):
    async def scenario(engine, log):
        log.keeps_events = keeps_events
        job = await joined(engine, log, "a")
        log.open.set()
        share = await job.open_shared_memory("a", 1)
        job.sharing.confirm("a", share.token)
        share.buffers.slabs[0][0][:] = 2.0
        shared = SharedGradient(False, (FlatRange(0, 0, 4), FlatRange(1, 0, 2)))

        def look(event):
            if isinstance(event, Stepped):
                assert lies_in(event.gradient.slabs, share.buffers.slabs) != keeps_events
                if keeps_events:  # the worker writes there too early
                    share.buffers.slabs[0][0][:] = 5.0

        log.look = look
        await job.push_shared(PushHeader("job", "a", 1, 1, 0, shared=shared), shared)
        assert job.state.weights.buffers.slabs[0][0].tolist() == [-2.0] * 4

    logged(scenario)


def test_a_job_owns_the_weights_of_its_events(logged):
    async def scenario(engine, log):
        job = await joined(engine, log, "a")
        log.open.set()
        slabs = job.state.weights.buffers.slabs
        assert lies_in(log.last(Created).weights.slabs, slabs)
        spec = GroupSpec("n", {}, (ParameterSpec("x", (3,), "float32"),))
        weights = FlatBuffers([extent_of_groups([spec], "sgd", 2)])
        await job.editor.add_group(spec, weights, 2)
        assert log.last(GroupAdded).weights is weights
        assert lies_in(weights.slabs, job.state.weights.buffers.slabs[1:])

    logged(scenario)


def test_a_log_that_keeps_nothing_costs_neither_a_copy_nor_memory(play, monkeypatch):
    count, made, kept = 1 << 20, [], flat.FlatBuffers._add

    def add(self, extent, region):
        made.append(extent.bytes)
        kept(self, extent, region)

    async def scenario(engine):
        spec = JobSpec("job", "sgd", {"lr": 1.0}, (GroupSpec("g", {}, (ParameterSpec("w", (count,), "float32"),)),))
        with engine.catalog.upload(spec) as upload:
            upload.sink.write_all([Frame.of(0, 0, np.zeros(count, "f4"))])
            job = await engine.catalog.finish(upload)
        await job.join("a", None)
        frames = [Frame.of(0, 0, np.ones(count, "f4"))]
        for sequence in (1, 2):  # now all sets of weights are there, and the slots
            await engine.push(job, "a", sequence, frames=frames)
        monkeypatch.setattr(flat.FlatBuffers, "_add", add)
        tracemalloc.start()
        try:
            for sequence in (3, 4, 5):
                await engine.push(job, "a", sequence, frames=frames)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert job.state.version == 5
        assert not made
        assert peak < count  # bytes: a quarter of one gradient, for the blocks that arithmetic works on

    play(scenario, limit=1 << 30)
