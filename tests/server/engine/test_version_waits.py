"""Waiting for versions of a job, without a server and without time."""

import asyncio

import pytest
from tests.server.engine.conftest import settle

from optd_server.engine.events import OptionsChanged
from optd_server.engine.job import Job
from optd_wire import errors
from optd_wire.values import Async


def waiting(job: Job, *versions: int) -> "list[asyncio.Task[None]]":
    return [asyncio.ensure_future(job.version_waits.reach(version)) for version in versions]


def test_each_waiter_wakes_at_its_version_and_not_before(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("w0", None)
        first, other, third = waiting(job, 1, 1, 3)
        await settle()
        assert not any(each.done() for each in (first, other, third))
        await engine.push(job, "w0", 1)
        await settle()
        assert [each.done() for each in (first, other, third)] == [True, True, False]
        await engine.push(job, "w0", 2)
        await settle()
        assert not third.done()
        await engine.push(job, "w0", 3)
        await third
        await job.version_waits.reach(2)  # it has been there, so nobody waits

    play(scenario)


def test_leaving_a_version_also_takes_one_that_the_job_has_not_come_to(play):
    """A reader that knows version 7 of a job at version 0 has to hear that the job went back."""

    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("w0", None)
        for known in (None, 7):
            await job.version_waits.leave(known)
        leaving = asyncio.ensure_future(job.version_waits.leave(0))
        await settle()
        assert not leaving.done()
        await engine.push(job, "w0", 1)
        await leaving

    play(scenario)


def test_who_gives_up_leaves_nothing_behind_and_disturbs_nobody(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("w0", None)
        soon, late = waiting(job, 1, 2)
        await settle()
        soon.cancel()
        await settle()
        assert list(job.version_waits._waiting.values()) == [2]
        await engine.push(job, "w0", 1)
        await engine.push(job, "w0", 2)
        await late
        assert job.version_waits._waiting == {}
        assert job.version_waits._soonest is None

    play(scenario)


@pytest.mark.parametrize("gone", [None, errors.JobReloads(job="job")], ids=["deleted", "reloaded"])
def test_the_end_of_a_job_wakes_everybody(play, gone):
    async def scenario(engine):
        job = await engine.create(Async())
        tasks = waiting(job, 1, 5)
        await settle()
        await (engine.catalog.delete("job") if gone is None else job.close(gone))
        expected = errors.UnknownJob if gone is None else errors.JobReloads
        for each in [*tasks, *waiting(job, 0)]:
            with pytest.raises(expected):
                await each

    play(scenario)


def test_a_job_that_fails_tells_whoever_waits_for_its_next_version(play):
    async def scenario(engine):
        job = await engine.create(Async())
        (task,) = waiting(job, 1)
        await settle()
        job.fold.fail(RuntimeError("made up"))
        with pytest.raises(errors.JobFailed, match="made up"):
            await task
        await job.version_waits.reach(0)  # what it has come to can still be read

    play(scenario)


def test_an_event_that_is_no_step_wakes_nobody(play):
    async def scenario(engine):
        job = await engine.create(Async())
        (task,) = waiting(job, 1)
        await settle()
        future = next(iter(job.version_waits._waiting))
        await job.fold.take(OptionsChanged(()))
        await settle()
        assert not future.done()
        task.cancel()

    play(scenario)
