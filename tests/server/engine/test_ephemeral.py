"""Jobs that end with their workers, and jobs that are created once however often the call comes."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from tests.server.engine.conftest import settle

from optd_wire import errors
from optd_wire.frames import Frame
from optd_wire.values import GroupSpec, JobSpec, ParameterSpec

SPEC = JobSpec("job", "sgd", {}, (GroupSpec("g", {}, (ParameterSpec("w", (4,), "float32"),)),), ephemeral=True)
LEASE, KEPT = 10, 600  # seconds: those of the catalogs of these tests


async def create(engine, spec=SPEC, creation_id=""):
    with engine.catalog.upload(spec, creation_id) as upload:
        upload.sink.write_all([Frame.of(0, 0, np.zeros(4, "f4"))])
        return await engine.catalog.finish(upload)


async def expire(engine, seconds):
    """Ends what has run out by then."""
    engine.clock.pass_to(seconds)
    await engine.catalog.expire()


def test_a_job_ends_when_its_last_worker_leaves(play):
    async def scenario(engine):
        job = await create(engine)
        for worker in ("a", "b"):
            await job.join(worker, None)
        await engine.catalog.leave("job", "a", 1)
        assert engine.catalog.find("job") is job
        await engine.catalog.leave("job", "b", 1)
        assert (len(engine.catalog), engine.catalog.memory.planned, job.closed.is_set()) == (0, 0, True)

    play(scenario)


def test_a_job_waits_for_workers_that_mean_to_come_back(play):
    """One of them does: then the job ends with the last one, as ever."""

    async def scenario(engine):
        job = await create(engine)
        for worker in ("a", "b"):
            await job.join(worker, None)
        await engine.catalog.leave("job", "a", 1, returns=True)
        await engine.catalog.leave("job", "b", 1)
        await expire(engine, 1)
        await expire(engine, KEPT)
        assert engine.catalog.find("job") is job
        await job.join("a", None)
        await engine.catalog.leave("job", "a", 2)
        assert len(engine.catalog) == 0

    play(scenario)


def test_a_job_whose_workers_do_not_come_back_ends_after_its_time(play):
    async def scenario(engine):
        job = await create(engine)
        await job.join("a", None)
        await engine.catalog.leave("job", "a", 1, returns=True)
        await expire(engine, 1)
        await expire(engine, KEPT)
        assert engine.catalog.find("job") is job
        await expire(engine, 1 + KEPT)
        assert len(engine.catalog) == 0

    play(scenario)


def test_a_job_with_a_name_stays(play):
    async def scenario(engine):
        job = await create(engine, replace(SPEC, ephemeral=False))
        await job.join("a", None)
        await engine.catalog.leave("job", "a", 1)
        await expire(engine, 1e9)
        assert engine.catalog.find("job") is job

    play(scenario)


def test_a_job_whose_workers_are_gone_is_kept_for_a_while(play):
    async def scenario(engine):
        job = await create(engine)
        await job.join("a", None)
        await expire(engine, LEASE)
        await expire(engine, LEASE + KEPT - 1)
        assert engine.catalog.find("job") is job
        await job.join("a", None)  # it has come back
        await expire(engine, LEASE + KEPT)
        assert engine.catalog.find("job") is job
        await expire(engine, 2 * LEASE + KEPT)
        await expire(engine, 2 * LEASE + 2 * KEPT)
        assert len(engine.catalog) == 0

    play(scenario)


def test_a_job_that_nobody_has_joined_ends_too(play):
    async def scenario(engine):
        await create(engine)
        await expire(engine, 0)
        await expire(engine, KEPT)
        assert len(engine.catalog) == 0

    play(scenario)


def test_a_call_that_is_repeated_finds_the_job_that_it_has_created(play):
    async def scenario(engine):
        job = await create(engine, creation_id="one")
        assert await engine.catalog.find_created("job", "one") is job
        assert await engine.catalog.find_created("job", "two") is None
        assert await engine.catalog.find_created("job", "") is None

    play(scenario)


def test_a_repeat_waits_for_the_call_that_is_under_way(play):
    async def scenario(engine):
        with engine.catalog.upload(SPEC, "one") as upload:
            waiting = asyncio.create_task(engine.catalog.find_created("job", "one"))
            assert await engine.catalog.find_created("job", "two") is None
            await settle()
            assert not waiting.done()
            upload.sink.write_all([Frame.of(0, 0, np.zeros(4, "f4"))])
            job = await engine.catalog.finish(upload)
        assert await waiting is job

    play(scenario)


def test_a_job_is_replaced_unless_others_use_it_or_the_new_one_is_wrong(play):
    async def scenario(engine):
        job = await create(engine)
        await job.join("a", None)
        engine.clock.pass_to(3)
        with pytest.raises(errors.JobInUse, match=r"other workers hold a lease there \(a\); stop them, or wait 7 s"):
            await engine.catalog.make_way(SPEC, "b")
        with pytest.raises(errors.UnknownAlgorithm):
            await engine.catalog.make_way(replace(SPEC, algorithm="sdg"), "a")
        assert engine.catalog.find("job") is job
        await engine.catalog.make_way(SPEC, "a")
        assert job.closed.is_set()
        await engine.catalog.make_way(SPEC, "a")  # there is none any more
        assert await create(engine) is not job

    play(scenario)
