"""What becomes of gradients on their way into a step, where it takes an engine driven by hand to see it."""

import asyncio

import numpy as np
import pytest
from tests.server.engine.conftest import settle, weights

from optd_server.store.gradients import Gradient
from optd_wire import errors
from optd_wire.values import Async, GroupUpdate, JobUpdate, PushHeader


def shared(value):
    """A gradient that lies in memory which a worker shares, and must not be written to."""
    slabs = [[np.full(4, value, "f4"), np.full(2, value)]]
    for slab in slabs[0]:
        slab.flags.writeable = False
    return Gradient(slabs, [[np.ones(1, np.bool_), np.ones(1, np.bool_)]])


def test_a_bound_that_comes_while_a_shared_push_waits_for_its_step_has_it_sent_again(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        busy = asyncio.Event()
        first = job._writer.submit(busy.wait)
        change = asyncio.create_task(job.editor.update_job(JobUpdate("job", {"clip_norm": 0.5})))
        await settle()
        header = PushHeader("job", "a", 1, 1, 0)
        push = asyncio.create_task(job.pushes.push_shared(header, shared(1.0)))
        await settle()
        busy.set()
        await first
        assert (await change)[0].options["clip_norm"] == 0.5
        with pytest.raises(errors.RoundBroken, match="options of the job have changed"):
            await push
        assert weights(job) == [[0.0] * 4, [0.0, 0.0]]
        result = await job.pushes.push_shared(header, shared(1.0))
        assert (result.applied_version, result.repeat) == (1, False)
        norm = np.sqrt(sum(np.square(each).sum() / (10.0**2 if len(each) == 2 else 1) for each in weights(job)))
        assert norm == pytest.approx(0.5, rel=1e-5)  # the second group has lr 10

    play(scenario)


def test_pushes_that_are_skipped_give_their_room_back(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        await job.editor.update_job(JobUpdate("job", {"nonfinite": "skip"}))
        for sequence in range(1, 8):
            result = await engine.push(job, "a", sequence, value=np.nan)
            assert (result.skipped, result.applied_version, result.repeat) == (True, 0, False)
        assert (await engine.push(job, "a", 7, value=np.nan)).skipped  # which a repeat is told, too
        assert (await engine.push(job, "a", 8)).applied_version == 1
        summary = job.summary()
        assert (summary.pushes, summary.gradients.skipped_steps, summary.gradients.nonfinite) == (1, 7, 28)

    play(scenario)


def test_options_that_ride_along_with_a_skipped_push_are_in_force(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        await job.editor.update_job(JobUpdate("job", {"nonfinite": "skip"}))
        result = await engine.push(job, "a", 1, value=np.nan, updates=(GroupUpdate("g", {"lr": 0.5}),))
        assert result.skipped
        assert [group.options["lr"] for group in result.options] == [0.5, 10.0]
        assert job.state.groups.options[0].since_version == 0

    play(scenario)


def test_a_push_that_is_added_up_counts_once(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        await job.editor.update_job(JobUpdate("job", {"accumulate": 2}))
        first = await engine.push(job, "a", 1, value=1.0)
        again = await engine.push(job, "a", 1, value=1.0)
        assert (first.accumulated, first.repeat, again.accumulated, again.repeat) == (1, False, 1, True)
        assert weights(job)[0] == [0.0] * 4
        assert (await engine.push(job, "a", 2, value=2.0)).applied_version == 1
        assert weights(job)[0] == [-1.5] * 4
        assert job.summary().pushes == 2

    play(scenario)


def test_memory_for_what_is_added_up_is_planned(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        before = job.memory.bytes
        await job.editor.update_job(JobUpdate("job", {"accumulate": 2}))
        assert job.memory.bytes == before + 4 * 4 + 2 * 8
        await engine.push(job, "a", 1)
        assert job.memory.bytes == before + 4 * 4 + 2 * 8
        await job.editor.update_job(JobUpdate("job", {"accumulate": 1}))  # which makes the step of what there is
        assert (job.memory.bytes, job.version.version) == (before, 1)
        assert (await engine.push(job, "a", 2)).applied_version == 2
        assert job.memory.bytes == before
        engine.catalog.memory.limit = before
        with pytest.raises(errors.MemoryExceeded):
            await job.editor.update_job(JobUpdate("job", {"accumulate": 3}))
        assert job.info().options.options["accumulate"] == 1

    play(scenario)
