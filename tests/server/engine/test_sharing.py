"""Shared memory in the engine: whose hold is whose, and what happens when the system has nothing more to give."""

import asyncio
import errno
import os
import threading

import numpy as np
import pytest
from tests.server.engine.rounds import Rounds, play, random_arrays, same, settle, stepped, until

from optd_server.engine import offload
from optd_server.rpc.callers import ANONYMOUS
from optd_server.store.gradients import Slot
from optd_server.store.snapshots import Snapshots
from optd_wire import errors
from optd_wire.messages import to_message
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import PushHeader


async def shares(rounds: Rounds, worker: str):
    """What a worker shares, proved. The weights lie in shared memory from now on."""
    share = await rounds.job.open_shared_memory(worker, rounds.member(worker).epoch)
    rounds.job.sharing.confirm(share.worker, share.token)
    return share


class Steps:
    """A stream of steps whose messages a test hands out."""

    def __init__(self, rounds: Rounds) -> None:
        self._given: asyncio.Queue = asyncio.Queue()
        self.task = asyncio.create_task(self._collect(rounds))

    async def _collect(self, rounds):
        return [pb.StepResponse.FromString(message) async for message in rounds.service.step(self, ANONYMOUS)]

    async def next(self, *, patient=False):
        return await self._given.get()

    def give_back(self):
        pass

    def unpark(self):
        pass

    async def charge(self, job):
        pass

    def send(self, message, frames=()):
        self._given.put_nowait((message, list(frames)))

    def end(self):
        self._given.put_nowait(None)


@pytest.fixture
def exhausted(monkeypatch):
    """Switches the system's memory to share off and on."""
    create, state = os.memfd_create, {"off": False}

    def memfd_create(*arguments):
        if state["off"]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return create(*arguments)

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    return lambda off=True: state.update(off=off)


# Whose hold is whose


def test_a_late_call_of_an_old_epoch_leaves_the_hold_of_the_new_one_alone():
    async def scenario(rounds):
        await rounds.join("a")
        await rounds.step({"a": random_arrays(1)})
        steps = Steps(rounds)
        zombie = PushHeader("job", "a", rounds.member("a").epoch, 1, 0)
        delivery = pb.Delivery(shared=True, in_place=True)
        steps.send(pb.StepRequest(header=to_message(zombie), delivery=delivery))
        await settle()
        await rounds.join("a")
        share = await shares(rounds, "a")
        held, in_place = rounds.job.sharing.deliver("a", share.epoch, in_place=True)
        assert in_place
        values = held.arrays(0)[0].copy()
        steps.send(pb.StepRequest(last=True), [frame for _, frame in rounds.frames(random_arrays(1))])
        steps.end()
        replies = await steps.task
        assert replies[0].pushed.repeat
        assert not replies[0].pulled.HasField("shared")
        assert sum(len(reply.frames) for reply in replies) > 0
        assert share.held is held
        for number in range(4):
            await rounds.step({"a": random_arrays(number)})
        assert held.arrays(0)[0].tobytes() == values.tobytes()

    play(scenario, 1)


def test_each_call_ends_the_hold_of_the_one_before():
    async def scenario(rounds):
        await rounds.join("a")
        share = await shares(rounds, "a")
        for number in range(6):
            held, in_place = rounds.job.sharing.deliver("a", share.epoch, in_place=bool(number % 2))
            assert in_place == bool(number % 2)
            assert (held.weights.holders, held.weights.in_place) == (1, number % 2)
            await rounds.step({"a": random_arrays(number)})
        rounds.job.sharing.release("a")
        assert all(w.holders == w.in_place == 0 for w in rounds.job.snapshots._sets)

    play(scenario, 1)


def test_a_worker_that_stands_still_while_it_copies_holds_steps_up_until_its_lease_ends():
    async def scenario(rounds):
        await rounds.join("a", "b", "c")
        copying, in_place = await shares(rounds, "b"), await shares(rounds, "c")
        assert rounds.job.sharing.deliver("c", in_place.epoch, in_place=True)[1]
        await rounds.step({"a": random_arrays(1)})
        assert not rounds.job.sharing.deliver("b", copying.epoch, in_place=True)[1]
        await rounds.step({"a": random_arrays(2)})
        expected = stepped(rounds.weights, [random_arrays(3)])
        waiting = rounds.upload("a")
        waiting.send_all(rounds.messages(random_arrays(3)))
        await until(lambda: rounds.job.snapshots.wanted)
        rounds.expire("b")
        await waiting
        assert same(rounds.weights, expected)

    play(scenario, 1)


def test_a_worker_that_leaves_while_weights_are_laid_out_for_it_leaves_nothing_behind(monkeypatch):
    async def scenario(rounds):
        await rounds.join("a", "b")
        planned, epoch = rounds.catalog.memory.planned, rounds.member("a").epoch
        entered, opened, share = threading.Event(), threading.Event(), Snapshots.share

        def held_up(snapshots):
            entered.set()
            assert opened.wait(10)
            return share(snapshots)

        monkeypatch.setattr(Snapshots, "share", held_up)
        monkeypatch.setattr(offload, "INLINE_ELEMENTS", -1)
        opening = asyncio.create_task(rounds.job.open_shared_memory("a", epoch))
        await until(entered.is_set)
        leaving = asyncio.create_task(rounds.leave("a"))
        await until(lambda: not rounds.job.leases.holds("a"))
        opened.set()
        await leaving
        with pytest.raises(errors.StaleEpoch):
            await opening
        assert rounds.catalog.memory.planned == planned
        assert rounds.job.leases.of("a").lane == "grpc"
        await rounds.step({"b": random_arrays(1)})

    play(scenario, 1)


# When the system has no more descriptors


def test_a_job_that_cannot_be_shared_stays_as_it_is_and_can_be_later(exhausted):
    async def scenario(rounds):
        await rounds.join("a")
        planned = rounds.catalog.memory.planned
        exhausted()
        with pytest.raises(errors.SharedMemoryUnavailable, match="Too many open files"):
            await shares(rounds, "a")
        assert rounds.job.leases.of("a").lane == "grpc (Too many open files)"
        assert rounds.catalog.memory.planned == planned
        for number in range(4):
            await rounds.step({"a": random_arrays(number)})
        exhausted(False)
        share = await shares(rounds, "a")
        assert rounds.job.sharing.deliver("a", share.epoch, in_place=True)[1]

    play(scenario, 1)


def test_steps_of_a_shared_job_go_on_without_descriptors_and_its_weights_are_shared_again_later(exhausted):
    async def scenario(rounds):
        await rounds.join("a")
        share = await shares(rounds, "a")
        exhausted()
        await rounds.step({"a": random_arrays(0)})
        # There is one set that can be shared, and it is not the current one.
        assert rounds.job.sharing.deliver("a", share.epoch, in_place=True) is None
        for number in range(4):
            await rounds.step({"a": random_arrays(number)})
        assert rounds.job.fold.failure == ""
        exhausted(False)
        for number in range(3):
            await rounds.step({"a": random_arrays(number)})
        held, in_place = rounds.job.sharing.deliver("a", share.epoch, in_place=True)
        assert in_place
        assert held.weights.region_numbers()

    play(scenario, 1)


def test_a_group_that_gets_no_shared_memory_is_not_added_at_all(exhausted):
    async def scenario(rounds):
        await rounds.join("a")
        await shares(rounds, "a")
        await rounds.step({"a": random_arrays(1)})
        before = (rounds.catalog.memory.planned, rounds.job.info(), rounds.weights)
        exhausted()
        with pytest.raises(OSError, match="Too many open files"):
            await rounds.add_group()
        assert (rounds.catalog.memory.planned, rounds.job.info()) == before[:2]
        assert same(rounds.weights, before[2])
        await rounds.step({"a": random_arrays(2)})
        exhausted(False)
        await rounds.add_group()
        exhausted()  # where its place in the other sets is concerned
        for number in range(3):
            await rounds.step({"a": random_arrays(number) | {"x": np.ones(3, "f4")}})

    play(scenario, 1)


# When the system has no more memory


def no_memory(*_):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize(("owner", "what"), [(Slot, "fit"), (Snapshots, "_find_spare")])
@pytest.mark.parametrize("shared", [0, 1, 2])
def test_a_round_without_memory_is_broken_off_and_a_later_one_is_right(monkeypatch, owner, what, shared):
    async def scenario(rounds):
        await rounds.join("a", "b")
        with monkeypatch.context() as broken:
            broken.setattr(owner, what, no_memory)
            uploads = [rounds.share(name, random_arrays(1)) for name in "ab"[:shared]]
            for name in "ab"[shared:]:
                uploads.append(rounds.upload(name))
                uploads[-1].send_all(rounds.messages(random_arrays(2)))
            for upload in uploads:
                error = await upload.error()
                assert type(error) is errors.RoundBroken
                assert "Cannot allocate memory" in str(error)
        assert same(rounds.weights, rounds.first)
        assert rounds.idle()
        for number in range(2):
            await rounds.step({"a": random_arrays(number), "b": random_arrays(number + 10)})

    play(scenario, 2)
