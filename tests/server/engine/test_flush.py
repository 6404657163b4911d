"""Flushes among pushes that break off, wait and come again, where it takes a service driven by hand to see it."""

import numpy as np
from tests.server.engine.rounds import Rounds, play, random_arrays, same, settle, stepped

from optd_wire import errors
from optd_wire.values import JobUpdate


def test_one_that_comes_again_gets_the_first_reply_and_makes_no_second_step() -> None:
    async def scenario(rounds: Rounds) -> None:
        await rounds.join("a")
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 3}))
        gradient = random_arrays(1)
        first = rounds.upload("a")
        first.send_all(rounds.messages(gradient))
        assert (await first).result.accumulated == 1
        expected = stepped(rounds.weights, [gradient])
        header = rounds.header("a", flush=True)
        results = [
            await rounds.job.push(header, _Nothing()),
            await rounds.job.push(header, _Nothing()),
        ]
        assert [(result.applied_version, result.repeat) for result in results] == [(1, False), (1, True)]
        assert same(rounds.weights, expected)
        assert rounds.version == 1
        summary = rounds.job.summary()
        assert (summary.pushes, summary.gradients.accumulated) == (1, 0)

    play(scenario, 0)


class _Nothing:
    """A push that has one message, without frames."""

    async def receive(self, write) -> None:
        await write([])

    def park(self) -> None:
        pass


def test_one_that_breaks_off_leaves_what_is_added_up() -> None:
    async def scenario(rounds: Rounds) -> None:
        await rounds.join("a")
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 3}))
        gradient = random_arrays(1)
        rounds_first = rounds.upload("a")
        rounds_first.send_all(rounds.messages(gradient))
        await rounds_first
        broken = rounds.upload("a", flush=True)
        await settle()
        broken.break_off()
        assert isinstance(await broken.error(), errors.InvalidRequest)
        assert (rounds.job.summary().gradients.accumulated, rounds.version) == (1, 0)
        expected = stepped(rounds.weights, [gradient])
        assert (await rounds.upload("a", last=True, flush=True)).result.applied_version == 1
        assert same(rounds.weights, expected)

    play(scenario, 0)


def test_fewer_rounds_that_make_a_step_make_it_between_two_of_them() -> None:
    """A push that is on its way meanwhile begins the next window."""

    async def scenario(rounds: Rounds) -> None:
        await rounds.join("a", "b")
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 4}))
        gradients = [random_arrays(number) for number in range(2)]
        first = rounds.upload("a")
        first.send_all(rounds.messages(gradients[0]))
        await first
        before = rounds.weights
        second = rounds.upload("b")
        await settle()
        _, version = await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 1}))
        assert version.version == rounds.version == 1
        middle = stepped(before, [gradients[0]])
        assert same(rounds.weights, middle)
        second.send_all(rounds.messages(gradients[1]))
        assert (await second).result.applied_version == 2
        assert same(rounds.weights, stepped(middle, [gradients[1]]))
        assert np.isfinite(next(iter(rounds.weights.values()))).all()

    play(scenario, 0)
