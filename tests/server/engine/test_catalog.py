import asyncio
from dataclasses import replace

import numpy as np
import pytest
from tests.server.engine.conftest import settle

from optd_server.engine import memory as planning
from optd_server.engine.catalog import Catalog
from optd_server.engine.log import KeepsNothing
from optd_server.engine.memory import Memory
from optd_server.engine.options.fields import state_bytes
from optd_server.engine.rounds.policies.registry import decider_of
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_wire import errors
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.values import Async, GroupSpec, JobSpec, ParameterSpec, Sync


def spec(name="job", elements=4):
    return JobSpec(name, "sgd", {}, (GroupSpec("g", {}, (ParameterSpec("w", (elements,), "float32"),)),))


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 1e9])
def test_20_a_jump_of_the_wall_clock_ends_no_lease_and_keeps_none(play, jump):
    async def scenario(engine):
        job = await engine.create(Async())
        epoch = (await job.join("w", None)).epoch
        engine.clock.wall_seconds += jump
        engine.clock.seconds += 9
        await engine.catalog.expire()
        assert job.workers.active == 1
        assert (await engine.push(job, "w", 1, epoch=epoch)).applied_version == 1
        engine.clock.wall_seconds -= 2 * jump
        engine.clock.seconds += 9
        await engine.catalog.expire()
        assert job.workers.active == 1
        engine.clock.seconds += 1  # ten seconds without a sign of life
        await engine.catalog.expire()
        assert job.workers.active == 0
        with pytest.raises(errors.StaleEpoch):
            await engine.push(job, "w", 2, epoch=epoch)

    play(scenario)


def test_nobody_sees_a_job_before_it_is_whole_and_those_who_wait_get_it(play):
    async def scenario(engine):
        with engine.catalog.upload(spec()) as upload:
            with pytest.raises(errors.UnknownJob):
                engine.catalog.find("job")
            with pytest.raises(errors.JobExists, match="is being created by another worker"):
                engine.catalog.upload(spec()).__enter__()
            waiting = asyncio.create_task(engine.catalog.find_whole("job"))
            await settle()
            assert not waiting.done()
            with pytest.raises(errors.IncompleteParameter, match="weights of parameter 'w' covers 0 of its 4"):
                await engine.catalog.finish(upload)
            upload.sink.write_all([Frame.of(0, 0, np.zeros(4, "f4"))])
            job = await engine.catalog.finish(upload)
        assert await waiting is job
        with pytest.raises(errors.JobExists, match="exists already"):
            engine.catalog.upload(spec()).__enter__()

    play(scenario)


def test_an_upload_that_breaks_leaves_nothing_and_wakes_those_who_wait(play):
    async def scenario(engine):
        with pytest.raises(RuntimeError), engine.catalog.upload(spec()):
            waiting = asyncio.create_task(engine.catalog.find_whole("job"))
            await settle()
            raise RuntimeError("the creator died")
        with pytest.raises(errors.UnknownJob):
            await waiting
        assert (len(engine.catalog), engine.catalog.memory.planned) == (0, 0)
        with engine.catalog.upload(spec()):
            pass

    play(scenario)


def test_a_job_that_does_not_fit_is_refused_before_anything_is_allocated(play):
    async def scenario(engine):
        with pytest.raises(errors.MemoryExceeded, match="job 'job' needs .* bytes, 1000 of the server's 1000 are free"):
            engine.catalog.upload(spec(elements=1 << 39)).__enter__()
        assert engine.catalog.memory.planned == 0

    play(scenario, limit=1000)


@pytest.mark.parametrize("workers", [0, 4097])
def test_a_job_whose_policy_is_none_is_refused_before_anything_is_allocated(play, workers):
    async def scenario(engine):
        says = rf"workers must be in \[1, 4096\] or 'live', got {workers}"
        wrong = replace(spec(), policy=Sync(workers))
        with pytest.raises(errors.InvalidPolicy, match=says):
            engine.catalog.upload(wrong).__enter__()
        with pytest.raises(errors.InvalidPolicy, match=says):
            await engine.catalog.make_way(wrong, "a")
        assert (len(engine.catalog), engine.catalog.memory.planned) == (0, 0)

    play(scenario)


@pytest.mark.parametrize(
    ("algorithm", "options", "policy", "buffers"),
    [
        # 3 snapshots, gradients, the states that the options need, a message of each push that waits for others
        ("sgd", {"momentum": 0.0}, Sync(1), 3 + 1 + 0),
        ("sgd", {"momentum": 0.9}, Sync(1), 3 + 1 + 1),
        ("adam", {"amsgrad": False}, Async(), 3 + 4 + 2),
        ("adam", {"amsgrad": True}, Sync(8), 3 + 1 + 3 + 8),
    ],
)
def test_the_plan_counts_every_buffer(algorithm, options, policy, buffers):
    layouts = [lay_out([ParameterSpec("w", (100,), "float32"), ParameterSpec("v", (10,), "float64")])]
    states = state_bytes(ALGORITHMS[algorithm].fields(options), layouts[0])
    decider = decider_of(policy)
    planned = planning.job_bytes(decider.slots, decider.most, layouts, [states])
    # A push that waits has a frame for each of the two parameters.
    frames = 2 * decider.most if decider.most > 1 else 0
    assert planned == buffers * (100 * 4 + 10 * 8) + frames * planning.FRAME_BYTES


def test_loans_come_back_even_when_the_borrower_fails():
    memory = planning.Memory(100)
    job = planning.Reservation("job 'j'")
    memory.reserve(job, 60)
    with pytest.raises(RuntimeError), memory.lend("copy", 30):
        assert memory.planned == 90
        with pytest.raises(errors.MemoryExceeded, match="copy needs 20 bytes, 10 of the server's 100"):
            memory.lend("copy", 20).__enter__()
        raise RuntimeError
    assert memory.planned == 60
    memory.reserve(job, 100)
    memory.release(job)
    assert memory.planned == 0


def test_leases_of_recovered_jobs_begin_when_all_of_them_are_there(play):
    """Recovery may take longer than a lease."""

    async def scenario(engine):
        with engine.catalog.upload(spec()) as upload:
            upload.sink.write_all([Frame.of(0, 0, np.zeros(4, "f4"))])
            job = await engine.catalog.finish(upload)
        await job.join("w", None)
        started = Catalog(memory=Memory(1 << 20), offload=engine.offload, clock=engine.clock, lease_seconds=10)
        recovered = started.adopt(job.state, KeepsNothing(), 0)
        engine.clock.pass_to(15)
        started.resume()
        await started.expire()
        assert recovered.workers.check("w", 1).active
        engine.clock.pass_to(26)
        await started.expire()
        with pytest.raises(errors.StaleEpoch, match="its lease of 10 s ran out"):
            recovered.workers.check("w", 1)
        await started.close()

    play(scenario)
