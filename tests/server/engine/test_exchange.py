"""Another policy for a running job: what waits, what is under way, and the memory that is planned."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.engine.conftest import weights
from tests.server.engine.rounds import Rounds, play, random_arrays, same, settle, stepped, until
from tests.server.engine.test_chaos import Trainer

from optd_server.engine.events import Event, Stepped
from optd_server.engine.planning import planned_bytes
from optd_server.engine.rounds.policies.registry import decider_of
from optd_wire import errors
from optd_wire.values import Async, GroupUpdate, Policy, Sync


def planned(rounds: Rounds, policy: Policy) -> int:
    """The memory of the same job, had it been created with this policy."""
    return planned_bytes(rounds.spec, decider_of(policy), rounds.catalog.memory)


def check(rounds: Rounds, policy: Policy) -> None:
    """The job has this policy, wherever one looks, and the memory of a job that has always had it."""
    job = rounds.job
    assert job.state.policy == job.info().policy == job.summary().policy == policy
    assert job.memory.bytes == planned(rounds, policy)
    assert job.slots._made <= decider_of(policy).slots


async def exchange(rounds: Rounds, policy: Policy) -> None:
    await rounds.job.editor.set_policy(policy)
    assert rounds.job.state.policy == policy
    assert rounds.job.memory.bytes == planned(rounds, policy)


def test_pushes_that_wait_for_a_round_are_steps_of_their_own_under_async():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {name: random_arrays(ord(name)) for name in "ab"}
        expected = stepped(stepped(rounds.weights, [gradients["b"]]), [gradients["a"]])
        uploads = {name: rounds.upload(name) for name in "ba"}
        await settle()
        assert [info.waiting for info in rounds.job.workers.infos()] == [True, True]
        await exchange(rounds, Async())
        assert [info.waiting for info in rounds.job.workers.infos()] == [False, False]
        for name in "ba":
            uploads[name].send_all(rounds.messages(gradients[name]))
            await uploads[name]
        assert same(rounds.weights, expected)
        assert rounds.version == 2
        check(rounds, Async())

    play(scenario, 3)


def test_shared_pushes_that_wait_are_taken_over_too():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {name: random_arrays(ord(name)) for name in "ab"}
        expected = stepped(stepped(rounds.weights, [gradients["a"]]), [gradients["b"]])
        uploads = [rounds.share(name, gradients[name]) for name in "ab"]
        await settle()
        await exchange(rounds, Async())
        assert [(await upload).result.applied_version for upload in uploads] == [1, 2]
        assert same(rounds.weights, expected)

    play(scenario, 3)


def test_pushes_that_wait_for_a_round_make_a_smaller_one_in_the_order_of_names_and_what_is_left_is_late():
    async def scenario(rounds):
        await rounds.join("a", "b", "c")
        gradients = {name: random_arrays(ord(name)) for name in "abc"}
        uploads = {name: rounds.upload(name) for name in "cba"}
        await settle()
        expected = stepped(rounds.weights, [gradients["b"], gradients["c"]])
        await exchange(rounds, Sync(2))
        for name in "cb":
            uploads[name].send_all(rounds.messages(gradients[name]))
        for name in "bc":
            assert (await uploads[name]).result.applied_version == 1
        assert same(rounds.weights, expected)
        assert type(await uploads["a"].error()) is errors.RoundClosed
        check(rounds, Sync(2))
        await exchange(rounds, Sync(1))
        await rounds.step({"a": gradients["a"]})
        assert same(rounds.weights, stepped(expected, [gradients["a"]]))
        check(rounds, Sync(1))

    play(scenario, 5)


def test_pushes_under_way_stay_steps_of_their_own_and_the_next_ones_wait_for_a_round():
    async def scenario(rounds):
        await rounds.join(*"abcd")
        gradients = {name: random_arrays(ord(name)) for name in "abcd"}
        uploads = {name: rounds.upload(name, rounds.messages(gradients[name])[0]) for name in "abcd"}
        await settle()
        assert rounds.job.slots._made == 4
        await exchange(rounds, Sync(2))
        expected = rounds.weights
        for number, name in enumerate("abcd", 1):
            uploads[name].send_all(rounds.messages(gradients[name])[1:])
            assert (await uploads[name]).result.applied_version == number
            expected = stepped(expected, [gradients[name]])
        assert same(rounds.weights, expected)
        check(rounds, Sync(2))  # the room of the four pushes, but for one, is gone
        assert {info.dropped_rounds for info in rounds.job.workers.infos()} == {0}
        for number in range(3):
            await rounds.step({"b": random_arrays(number), "d": random_arrays(number + 10)})
            check(rounds, Sync(2))
        await exchange(rounds, Async())
        await rounds.step({"a": random_arrays(7)})
        await exchange(rounds, Sync(2))
        await rounds.step({"a": random_arrays(8), "b": random_arrays(9)})
        check(rounds, Sync(2))

    play(scenario, 0)


def test_the_new_policy_learns_of_pushes_that_are_taken_back():
    async def scenario(rounds):
        await rounds.join("a", "b", "c")
        waiting = rounds.upload("a")
        await settle()
        await exchange(rounds, Sync(2))
        await rounds.leave("a")
        assert type(await waiting.error()) is errors.PushWithdrawn
        await rounds.step({"b": random_arrays(1), "c": random_arrays(2)})

    play(scenario, 3)


@pytest.mark.parametrize("wrong", [Sync(0), Sync(4097)])
def test_a_policy_that_is_none_leaves_the_old_one(wrong):
    async def scenario(rounds):
        await rounds.join("a", "b")
        waiting = rounds.upload("a")
        await settle()
        with pytest.raises(errors.InvalidPolicy, match=rf"got {wrong.workers}"):
            await rounds.job.editor.set_policy(wrong)
        check(rounds, Sync(2))
        await the_round_goes_on(rounds, waiting)

    play(scenario, 2)


async def the_round_goes_on(rounds, waiting):
    """The push of a, which waits, makes a step with one of b."""
    gradients = {name: random_arrays(ord(name)) for name in "ab"}
    expected = stepped(rounds.weights, list(gradients.values()))
    partner = rounds.upload("b")
    waiting.send_all(rounds.messages(gradients["a"]))
    partner.send_all(rounds.messages(gradients["b"]))
    assert [(await each).result.applied_version for each in (waiting, partner)] == [1, 1]
    assert same(rounds.weights, expected)
    check(rounds, Sync(2))


def test_a_policy_that_needs_more_memory_than_there_is_leaves_the_old_one():
    async def scenario(rounds):
        await rounds.join("a", "b")
        waiting = rounds.upload("a")
        await settle()
        memory = rounds.catalog.memory
        memory.limit = planned(rounds, Sync(3)) - 1
        with pytest.raises(errors.MemoryExceeded, match="job 'job'"):
            await rounds.job.editor.set_policy(Sync(3))
        check(rounds, Sync(2))
        # What is planned later is planned for the old policy, too.
        await rounds.job.editor.update_group(GroupUpdate("g", {"momentum": 0.9}))
        await rounds.job.editor.update_group(GroupUpdate("g", {"momentum": 0.0}))
        check(rounds, Sync(2))
        memory.limit += 1
        await the_round_goes_on(rounds, waiting)
        await exchange(rounds, Sync(3))
        check(rounds, Sync(3))

    play(scenario, 2)


def test_a_policy_waits_for_the_step_that_runs(play):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        for worker in "ab":
            await job.join(worker, None)
        running = asyncio.Event()
        action = job._writer.submit(running.wait)
        push = asyncio.create_task(engine.push(job, "a", 1))
        changing = asyncio.create_task(job.editor.set_policy(Async()))
        await settle()
        assert (changing.done(), job.state.policy) == (False, Sync(2))
        running.set()
        await action
        await changing
        assert (await push).applied_version == 1
        assert weights(job)[0] == [-1.0] * 4

    play(scenario)


def test_a_job_that_is_deleted_takes_no_policy():
    async def scenario(rounds):
        await rounds.catalog.delete("job")
        with pytest.raises(errors.UnknownJob):
            await rounds.job.editor.set_policy(Async())

    play(scenario, 2)


class Steps:
    """A log that keeps who was part of each step."""

    keeps_events = True
    durable_version = 0

    def __init__(self) -> None:
        self.workers: list[list[str]] = []

    async def append(self, event: Event, version: int, before: object) -> int:
        if isinstance(event, Stepped):
            self.workers.append([mark.worker for mark in event.pushes])
        return 0

    async def wait(self, position: int) -> None:
        pass


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(st.sampled_from([Async(), Sync(1), Sync(2), Sync(3), Sync(4)]), max_size=6),
    st.integers(0, 1 << 30),
)
@settings(deadline=None, max_examples=100)
def test_every_gradient_counts_once_however_often_the_policy_changes(count, steps, mishaps, policies, seed):
    names = "abcd"[:count]
    rng = np.random.default_rng(seed)
    gradients = {name: [random_arrays(int(rng.integers(1 << 30))) for _ in range(steps)] for name in names}
    log = Steps()

    async def change(rounds):
        for policy in [*policies, Async()]:  # under the last one nobody waits for those that have finished
            await settle(int(rng.integers(12)))
            await exchange(rounds, policy)

    async def scenario(rounds):
        await rounds.join(*names)
        expected = rounds.weights
        trainers = [Trainer(rounds, name, gradients[name], rng, mishaps) for name in names]
        await asyncio.gather(change(rounds), *(trainer.train() for trainer in trainers))
        left = {name: list(gradients[name]) for name in names}
        for together in log.workers:
            assert together == sorted(together)
            expected = stepped(expected, [left[name].pop(0) for name in together])
        assert not any(left.values())
        assert same(rounds.weights, expected)
        await until(rounds.idle)
        check(rounds, Async())

    play(scenario, count, log=log)
