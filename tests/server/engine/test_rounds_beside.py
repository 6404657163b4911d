"""Pushes beside a round whose step is under way: which of them are late, and that all of them are answered."""

import asyncio

import numpy as np
import pytest
from tests.server.engine.rounds import Upload, play, random_arrays, same, settle, stepped, until
from tests.server.engine.test_round import Gate

from optd_server.engine.rounds.round import Round
from optd_wire import errors
from optd_wire.values import JobUpdate, Sync


def send(rounds, worker, seed, **more) -> Upload:
    upload = rounds.upload(worker, **more)
    upload.send_all(rounds.messages(random_arrays(seed)))
    return upload


@pytest.mark.parametrize("change", [None, Sync(2, quorum=2)], ids=str)
def test_a_round_that_fills_while_another_one_is_in_its_step_is_late(monkeypatch, change):
    """Also if the policy is changed meanwhile."""

    async def scenario(rounds):
        gate = Gate(monkeypatch, "divide")
        await rounds.join(*"abcd")
        expected = stepped(rounds.weights, [random_arrays(1), random_arrays(2)])
        first, second = send(rounds, "a", 1), send(rounds, "b", 2)
        await until(gate.entered.is_set)
        changing = None if change is None else asyncio.create_task(rounds.job.editor.set_policy(change))
        await settle()
        late = [send(rounds, worker, seed) for worker, seed in (("c", 3), ("d", 4))]
        await until(lambda: len(rounds.job.pushes._under_way) == 4 and not rounds.job.pushes.waiting.pushes)
        gate.opened.set()
        await first
        await second
        for upload in late:
            assert type(await upload.error()) is errors.RoundClosed
        if changing is not None:
            await changing
        assert rounds.version == 1
        assert same(rounds.weights, expected)
        await until(rounds.idle)

    play(scenario, 2)


def test_a_push_that_waits_is_answered_when_the_job_fails(monkeypatch):
    async def scenario(rounds):
        gate = Gate(monkeypatch, "divide")

        def fails(_):
            gate.entered.set()
            assert gate.opened.wait(10)
            raise RuntimeError("a kernel has a bug")

        monkeypatch.setattr(Round, "reduce", fails)
        await rounds.join(*"abc")
        members = [send(rounds, worker, seed) for seed, worker in enumerate("ab")]
        await until(gate.entered.is_set)
        waiting = send(rounds, "c", 5)
        await settle()
        gate.opened.set()
        for upload in (*members, waiting):
            assert type(await upload.error()) is errors.JobFailed
        assert not rounds.job.pushes.waiting.status()

    play(scenario, 2)


def test_a_push_whose_worker_was_lost_during_the_step_does_not_wait_for_another_round(monkeypatch):
    async def scenario(rounds):
        gate = Gate(monkeypatch, "add_frames")
        await rounds.join("a", "b")
        bad = random_arrays(1)
        bad["a"][0] = np.nan
        culprit = rounds.upload("a")
        culprit.send_all(rounds.messages(bad))
        lost = send(rounds, "b", 2)
        await until(gate.entered.is_set)
        rounds.expire("b")
        gate.opened.set()
        assert type(await culprit.error()) is errors.NonfiniteGradient
        assert type(await lost.error()) is errors.PushWithdrawn
        assert not rounds.job.pushes.waiting.status()

    play(scenario, 2)


def test_a_repeat_that_is_read_while_the_next_push_is_applied_gets_the_first_reply():
    async def scenario(rounds):
        await rounds.join("a")
        header, messages = rounds.header("a"), rounds.messages(random_arrays(1))
        await send(rounds, "a", 1)
        repeat = Upload(rounds, header)
        repeat.send(messages[0])
        await settle()
        await send(rounds, "a", 2)
        repeat.send_all(messages[1:])
        assert (await repeat).result.repeat
        assert rounds.version == 2

    play(scenario, 0)


def test_another_policy_leaves_the_push_of_one_that_has_joined_between_accumulated_rounds():
    async def scenario(rounds):
        await rounds.join("a", "b")
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 4}))
        for upload in [send(rounds, worker, seed) for seed, worker in enumerate("ab")]:
            await upload
        await rounds.join("c")
        waiting = send(rounds, "c", 5)
        await settle()
        await rounds.job.editor.set_policy(Sync(1))
        assert (await waiting).result.accumulated == 2

    play(scenario, 2)


def test_the_step_of_accumulated_rounds_is_noted_for_their_workers():
    async def scenario(rounds):
        rounds.clock.wall_seconds = 7.0
        await rounds.join("a", "b")
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 2}))
        for upload in [send(rounds, worker, seed) for seed, worker in enumerate("ab")]:
            await upload
        assert {info.last_step_unix_ms for info in rounds.job.workers.infos()} == {0}
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 1}))
        assert rounds.version == 1
        assert {info.last_step_unix_ms for info in rounds.job.workers.infos()} == {7000}

    play(scenario, 2)
