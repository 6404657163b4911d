import asyncio
from dataclasses import replace

import numpy as np
import pytest
from tests.server.engine.conftest import Upload, settle, weights

from optd_server.engine.step import arithmetic
from optd_wire import errors
from optd_wire.frames import Frame
from optd_wire.values import Async, GroupUpdate, PushHeader, Sync

FRAMES = [Frame.of(0, 0, np.ones(4, "f4"))]


def header(worker="a", sequence=1, epoch=1):
    return PushHeader("job", worker, epoch, sequence, 0)


def test_a_push_is_applied_and_a_repeat_gets_the_first_reply(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        first = await engine.push(job, "a", 1)
        again = await engine.push(job, "a", 1)
        with pytest.raises(errors.OtherPayload, match="sequence 1 again, but with another content"):
            await engine.push(job, "a", 1, value=5.0)
        assert (first.applied_version, first.repeat, again.applied_version, again.repeat) == (1, False, 1, True)
        assert weights(job) == [[-1.0] * 4, [0.0, 0.0]]
        assert job.state.applied_pushes == 1
        assert job.pushes.admit(header()).repeat

    play(scenario)


def test_the_same_push_twice_at_once_is_applied_once(play):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        await job.join("a", None)
        await job.join("b", None)
        twice = [asyncio.create_task(engine.push(job, "a", 1)) for _ in range(2)]
        await settle()
        assert job.pushes.admit(header()) is not None
        await engine.push(job, "b", 1, value=3.0)
        results = await asyncio.gather(*twice)
        assert sorted(result.repeat for result in results) == [False, True]
        assert weights(job)[0] == [-2.0] * 4

    play(scenario)


@pytest.mark.parametrize(("sequence", "error"), [(3, errors.SequenceGap), (0, errors.SequenceGap)])
def test_17_gaps_and_old_numbers_are_refused(play, sequence, error):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        await engine.push(job, "a", 1)
        with pytest.raises(error, match=rf"pushes sequence {sequence}; its last one was 1, so the next is 2"):
            await engine.push(job, "a", sequence)
        assert job.version.version == 1

    play(scenario)


@pytest.mark.parametrize("base", [2, 1 << 40])
def test_a_gradient_of_a_version_to_come_is_refused_and_changes_nothing(play, base):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        await engine.push(job, "a", 1)
        before = weights(job)
        future = PushHeader("job", "a", 1, 2, base)
        with pytest.raises(errors.FutureVersion, match=rf"of version {base} of job 'job', which is at version 1"):
            await job.push(future, Upload([]))
        assert (job.version.version, weights(job)) == (1, before)
        assert (await job.push(replace(future, base_version=1), Upload(FRAMES))).staleness == 0

    play(scenario)


def test_another_push_of_a_worker_whose_push_waits_is_refused(play):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        await job.join("a", None)
        task = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        with pytest.raises(errors.PushPending, match="has a push with sequence 1"):
            await engine.push(job, "a", 2)
        await job.workers.leave("a", 1)
        with pytest.raises(errors.PushWithdrawn, match="its worker left"):
            await task

    play(scenario)


def test_a_round_is_the_mean_and_steps_once(play):
    async def scenario(engine):
        job = await engine.create(Sync(3))
        for worker in "abc":
            await job.join(worker, None)
        results = await asyncio.gather(*(engine.push(job, w, 1, value=v) for w, v in [("c", 6), ("a", 1), ("b", 2)]))
        assert {result.applied_version for result in results} == {1}
        assert weights(job)[0] == [-3.0] * 4

    play(scenario)


def test_a_bad_push_changes_nothing_and_frees_its_room(play):
    bad = [
        ([Frame.of(0, 0, np.array([1, 2], "f4"))], errors.IncompleteParameter),
        ([Frame.of(0, 0, np.array([1, np.nan, 1, 1], "f4"))], errors.NonfiniteGradient),
        ([Frame.of(1, 0, np.array([np.inf, 1.0]))], errors.NonfiniteGradient),
    ]

    async def scenario(engine):
        job = await engine.create(Async(), momentum=0.9)
        await job.join("a", None)
        for _ in range(5):
            for frames, error in bad:
                with pytest.raises(error, match="parameter '[wb]'"):
                    await engine.push(job, "a", 1, frames=frames)
        assert (job.version.version, weights(job)) == (0, [[0.0] * 4, [0.0] * 2])
        assert all((state.steps == 0).all() for *_, state in job.state.groups.slabs())
        await engine.push(job, "a", 1)
        assert job.version.version == 1

    play(scenario)


def test_options_ride_along_whole_or_not_at_all(play):
    good, bad = GroupUpdate("g", {"lr": 0.5}), GroupUpdate("h", {"lr": -1.0})

    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)
        with pytest.raises(errors.OptionOutOfRange):
            await engine.push(job, "a", 1, updates=(good, bad))
        assert [group.options["lr"] for group in job.state.groups.options] == [1.0, 10.0]
        assert job.version.version == 0
        result = await engine.push(job, "a", 1, updates=(good,))
        assert weights(job)[0] == [-0.5] * 4
        assert [(group.revision, group.since_version) for group in result.options] == [(1, 0), (0, 0)]

    play(scenario)


def test_concurrent_changes_of_an_option_conflict_unless_they_agree(play):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.editor.update_group(GroupUpdate("g", {"lr": 0.5}, expected_revision=0))
        await job.editor.update_group(GroupUpdate("g", {"lr": 0.5}, expected_revision=0))
        with pytest.raises(errors.OptionConflict, match="lr was to become 0.1, but it has been changed to 0.5"):
            await job.editor.update_group(GroupUpdate("g", {"lr": 0.1}, expected_revision=0))
        options, version = await job.editor.update_group(GroupUpdate("g", {"lr": 0.1}, expected_revision=1))
        assert (options.revision, options.options["lr"], version.revision) == (2, 0.1, 2)

    play(scenario)


@pytest.mark.parametrize("how", ["join", "expire"])
def test_a_fenced_workers_push_is_withdrawn_and_never_applied(play, how):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        await job.join("a", None)
        await job.join("b", None)
        task = asyncio.create_task(engine.push(job, "a", 1, value=100.0))
        await settle()
        if how == "join":
            await job.join("a", None)
        else:
            engine.clock.pass_to(5)
            job.workers.check("b", 1)
            engine.clock.pass_to(11)
            job.workers.expire()
            await job.join("a", None)
        with pytest.raises(errors.PushWithdrawn):
            await task
        with pytest.raises(errors.StaleEpoch):
            await engine.push(job, "a", 1, epoch=1)
        await asyncio.gather(engine.push(job, "a", 1, epoch=2), engine.push(job, "b", 1))
        assert weights(job)[0] == [-1.0] * 4

    play(scenario)


def test_a_caller_that_goes_away_takes_its_push_along_and_the_round_waits_for_it(play):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        await job.join("a", None)
        await job.join("b", None)
        task = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        retry = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        await engine.push(job, "b", 1)
        assert not (await retry).repeat
        assert weights(job)[0] == [-1.0] * 4

    play(scenario)


def test_deleting_a_job_answers_what_waits(play):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        await job.join("a", None)
        task = asyncio.create_task(engine.push(job, "a", 1))
        await settle()
        await engine.catalog.delete("job")
        with pytest.raises(errors.UnknownJob):
            await task
        with pytest.raises(errors.UnknownJob):
            await job.editor.update_group(GroupUpdate("g", {"lr": 0.1}))
        assert engine.catalog.memory.planned == 0

    play(scenario)


def test_a_step_that_breaks_off_ends_the_job_and_says_so(play, monkeypatch):
    async def scenario(engine):
        job = await engine.create(Async())
        await job.join("a", None)

        def breaks(*arguments):
            raise MemoryError("no room")

        monkeypatch.setattr(arithmetic.Step, "take", breaks)
        with pytest.raises(errors.JobFailed, match=r"failed in the step after version 0: MemoryError\('no room'\)"):
            await engine.push(job, "a", 1)
        monkeypatch.undo()
        with pytest.raises(errors.JobFailed):
            job.pushes.admit(header())
        assert weights(job) == [[0.0] * 4, [0.0] * 2]

    play(scenario)


def test_sync_gives_the_same_bits_whatever_the_order_of_arrival(play):
    values = np.random.default_rng(0).normal(size=(4, 4)).astype("f4") * 10.0 ** np.arange(4)[:, None]
    results = []

    async def scenario(engine, order):
        job = await engine.create(Sync(4))
        for worker in "abcd":
            await job.join(worker, None)
        tasks = []
        for index in order:
            frames = [Frame.of(0, 0, values[index].astype("f4"))]
            tasks.append(asyncio.create_task(engine.push(job, "abcd"[index], 1, frames=frames)))
            await settle()
        await asyncio.gather(*tasks)
        results.append(weights(job)[0])

    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        play(lambda engine, order=order: scenario(engine, order))
    assert results[0] == results[1] == results[2]
