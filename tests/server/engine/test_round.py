import asyncio
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.engine.rounds import Upload, play, random_arrays, same, settle, stepped, until

from optd_server.engine import offload
from optd_server.engine.memory import FRAME_BYTES
from optd_server.engine.rounds import holding
from optd_server.engine.step.reduction import Reducer
from optd_wire import errors
from optd_wire.frames import Frame, decode
from optd_wire.v1 import tensor_pb2
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import Async, GroupSpec, GroupUpdate, JobUpdate, ParameterSpec, Sync

NAMES = "abcd"
PARAMETERS = ("a", "b", "c", "d", "e")


# Any order of arrival


def cut(rounds, gradient, cuts):
    """Messages of a gradient, its frames cut and gathered as `cuts` has it."""
    messages = [[]]
    for index, frame in rounds.frames(gradient):
        start = 0
        while start < frame.count:
            count = min(frame.count - start, 1 + next(cuts) % 4)
            messages[-1].append(Frame.of(index, frame.offset + start, frame.values[start : start + count]))
            start += count
            if next(cuts) % 2:
                messages.append([])
    return messages


@given(st.data())
@settings(deadline=None, max_examples=150)
@pytest.mark.parametrize("threaded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_order_of_arrival_gives_the_mean_from_left_to_right(threaded, data):
    count = data.draw(st.integers(1, 4), label="workers")
    names = NAMES[:count]
    plan = [
        {
            name: (
                data.draw(st.sets(st.sampled_from(PARAMETERS)), label=f"{name} has"),
                data.draw(st.booleans(), label=f"{name} shares"),
            )
            for name in names
        }
        for _ in range(2)
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30), label="seed"))
    cuts = iter(lambda: int(rng.integers(0, 1 << 20)), None)

    async def scenario(rounds):
        await rounds.join(*names)
        expected = rounds.weights
        for number, having in enumerate(plan):
            gradients = {
                name: {p: v for p, v in random_arrays(int(rng.integers(1 << 30))).items() if p in having[name][0]}
                for name in names
            }
            expected = stepped(expected, list(gradients.values()))
            uploads, left = [], {}
            for name in rng.permutation(list(names)):
                if having[name][1]:
                    uploads.append(rounds.share(name, gradients[name]))
                else:
                    messages = cut(rounds, gradients[name], cuts)
                    upload = rounds.upload(name, messages[0], last=len(messages) == 1)
                    uploads.append(upload)
                    left[upload] = messages[1:]
                await settle(int(rng.integers(0, 3)))
            while any(left.values()):
                upload = list(left)[int(rng.integers(len(left)))]
                if left[upload]:
                    frames = left[upload].pop(0)
                    upload.send(frames, last=not left[upload])
                await settle(int(rng.integers(0, 4)))
            for upload in uploads:
                assert (await upload).result.applied_version == number + 1
            assert same(rounds.weights, expected)

    before = offload.INLINE_ELEMENTS
    offload.INLINE_ELEMENTS = -1 if threaded else before
    try:
        play(scenario, count)
    finally:
        offload.INLINE_ELEMENTS = before


def test_who_has_nothing_for_a_place_lets_nobody_pass_those_before_it():
    gradients = {name: {"a": random_arrays(seed)["a"]} for seed, name in enumerate("acd")} | {"b": {}}

    async def scenario(rounds):
        await rounds.join(*NAMES)
        expected = stepped(rounds.weights, [gradients[name] for name in NAMES])
        uploads = {name: rounds.upload(name) for name in NAMES}
        for name in "bcda":
            uploads[name].send_all(rounds.messages(gradients[name]))
            await settle()
        for upload in uploads.values():
            await upload
        assert same(rounds.weights, expected)

    for seed in range(8):
        gradients |= {name: {"a": random_arrays(10 * seed + index)["a"]} for index, name in enumerate("acd")}
        play(scenario, 4)


def test_gradients_arrive_side_by_side_and_wait_for_each_other():
    async def scenario(rounds):
        await rounds.join("a", "b")
        first, second = rounds.upload("a"), rounds.upload("b")
        second.send_all(rounds.messages(random_arrays(2)))
        await until(second._given.empty)
        assert not second.task.done()
        first.send_all(rounds.messages(random_arrays(1)))
        await first
        await second

    play(scenario, 2)


# One push comes to nothing


async def nonfinite(rounds, name, upload):
    bad = [Frame.of(2, rounds.job.state.groups.layouts[2].parameters[0].offset, np.full(4, np.inf))]
    upload.send(bad, last=True)
    return errors.NonfiniteGradient


async def stream_ends(rounds, name, upload):
    upload.break_off()
    return errors.InvalidRequest


async def incomplete(rounds, name, upload):
    upload.send([Frame.of(2, rounds.job.state.groups.layouts[2].parameters[0].offset, np.ones(3))], last=True)
    return errors.IncompleteParameter


async def cancelled(rounds, name, upload):
    upload.task.cancel()


async def leaves(rounds, name, upload):
    await rounds.leave(name)
    return errors.PushWithdrawn


async def joins_again(rounds, name, upload):
    await rounds.join(name)
    return errors.PushWithdrawn


async def lease_ends(rounds, name, upload):
    rounds.expire(name)
    return errors.PushWithdrawn


ENDS = [nonfinite, stream_ends, incomplete, cancelled, leaves, joins_again, lease_ends]


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("culprit", "abc")
@pytest.mark.parametrize("end", ENDS)
def test_when_one_push_comes_to_nothing_the_others_wait_for_the_next_one(monkeypatch, end, culprit, threaded):
    if threaded:
        monkeypatch.setattr(offload, "INLINE_ELEMENTS", -1)

    async def scenario(rounds):
        await rounds.join(*"abc")
        gradients = {name: random_arrays(ord(name)) for name in "abc"}
        expected = stepped(rounds.weights, list(gradients.values()))
        uploads = {name: rounds.upload(name) for name in "abc"}
        for name, upload in uploads.items():
            for frames in rounds.messages(gradients[name])[:3]:
                upload.send(frames)
        await settle()
        kind = await end(rounds, culprit, uploads[culprit])
        await settle()
        for name, upload in uploads.items():
            upload.send_all(rounds.messages(gradients[name])[3:])
        if kind is not None:
            assert isinstance(await uploads[culprit].error(), kind)
        assert same(rounds.weights, rounds.first)
        assert rounds.version == 0
        if not rounds.job.leases.holds(culprit):
            await rounds.join(culprit)
        again = rounds.upload(culprit)
        again.send_all(rounds.messages(gradients[culprit]))
        await again
        for name, upload in uploads.items():
            if name != culprit:
                assert not (await upload).result.repeat
        assert same(rounds.weights, expected)
        await rounds.step({name: random_arrays(ord(name) + 2) for name in "abc"})

    play(scenario, 3)


@pytest.mark.parametrize("end", [leaves, joins_again, lease_ends])
def test_a_worker_that_goes_after_its_gradient_is_there_takes_it_along(end):
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = [random_arrays(3), random_arrays(2)]
        expected = stepped(rounds.weights, gradients)
        first, second = rounds.upload("a"), rounds.upload("b")
        first.send_all(rounds.messages(random_arrays(1)))
        await settle()
        await end(rounds, "a", first)
        assert type(await first.error()) is errors.PushWithdrawn
        second.send_all(rounds.messages(gradients[1]))
        await rounds.join("a")
        again = rounds.upload("a")
        again.send_all(rounds.messages(gradients[0]))
        await again
        await second
        assert same(rounds.weights, expected)

    play(scenario, 2)


@pytest.mark.parametrize("others_share", [False, True])
@pytest.mark.parametrize("culprit_shares", [False, True])
def test_a_gradient_with_a_nan_costs_the_others_of_its_round_nothing(culprit_shares, others_share):
    async def scenario(rounds):
        await rounds.join("a", "b", "c")
        gradients = {name: random_arrays(ord(name)) for name in "abc"}
        expected = stepped(rounds.weights, list(gradients.values()))
        bad = random_arrays(1)
        bad["d"][2] = np.nan

        def push(name, gradient, shares):
            if shares:
                return rounds.share(name, gradient)
            upload = rounds.upload(name)
            upload.send_all(rounds.messages(gradient))
            return upload

        wrong = push("b", bad, culprit_shares)
        others = [push(name, gradients[name], others_share) for name in "ac"]
        error = await wrong.error()
        assert type(error) is errors.NonfiniteGradient
        assert "'d'" in str(error)
        assert same(rounds.weights, rounds.first)
        await push("b", gradients["b"], culprit_shares)
        for upload in others:
            await upload
        assert same(rounds.weights, expected)

    play(scenario, 3)


# The same push again


@pytest.mark.parametrize("others", [0, 1])
def test_a_push_that_comes_again_while_it_waits_takes_the_place_of_the_first_call(others):
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {"a": random_arrays(1), "b": random_arrays(2)}
        expected = stepped(rounds.weights, list(gradients.values()))
        calls = [rounds.upload("a") for _ in range(2 + others)]
        await settle()
        other = rounds.upload("b")
        calls[-1].send_all(rounds.messages(gradients["a"]))
        other.send_all(rounds.messages(gradients["b"]))
        assert not (await calls[-1]).result.repeat
        await other
        for old in calls[:-1]:
            assert (await old).result.repeat
        assert same(rounds.weights, expected)

    play(scenario, 2)


def test_a_push_that_comes_again_half_received_takes_the_place_of_the_first_call():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {"a": random_arrays(1), "b": random_arrays(2)}
        expected = stepped(rounds.weights, list(gradients.values()))
        hanging, other = rounds.upload("a"), rounds.upload("b")
        hanging.send(rounds.messages(gradients["a"])[0])
        other.send_all(rounds.messages(gradients["b"]))
        await settle()
        again = rounds.upload("a")
        again.send_all(rounds.messages(gradients["a"]))
        assert not (await again).result.repeat
        await other
        assert (await hanging).result.repeat, "the first call learns what the second one has done"
        assert same(rounds.weights, expected)
        await rounds.step({"a": random_arrays(3), "b": random_arrays(4)})

    play(scenario, 2)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("shares", [False, True])
def test_15_another_content_under_the_same_number_is_refused(shares, is_there):
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {"a": random_arrays(1), "b": random_arrays(2)}
        expected = stepped(rounds.weights, list(gradients.values()))

        def push(name, gradient, header):
            if shares:
                return rounds.share(name, gradient)
            upload = Upload(rounds, header)
            upload.send_all(rounds.messages(gradient))
            return upload

        header = rounds.header("a")
        calls = [push("a", gradients["a"], header), push("b", gradients["b"], rounds.header("b"))]
        if is_there:
            for call in calls:
                await call
            if shares:
                rounds.header = lambda worker, **more: replace(header, **more)
        else:
            await settle()
        if not shares:
            other = push("a", random_arrays(3), header)
            error = await other.error()
            assert type(error) is errors.OtherPayload
            assert "sequence 1 again, but with another content" in str(error)
        elif is_there:
            other = push("a", random_arrays(3), header)
            assert type(await other.error()) is errors.OtherPayload
        for call in calls:
            await call
        assert same(rounds.weights, expected)

    play(scenario, 2)


def test_a_push_that_comes_again_when_its_gradient_is_there_has_one_outcome_for_both_calls():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {"a": random_arrays(1), "b": random_arrays(2)}
        expected = stepped(rounds.weights, list(gradients.values()))
        first, other = rounds.upload("a"), rounds.upload("b")
        first.send_all(rounds.messages(gradients["a"]))
        await settle()
        again = rounds.upload("a")
        again.send_all(rounds.messages(gradients["a"]))
        other.send_all(rounds.messages(gradients["b"]))
        assert [(await call).result.repeat for call in (first, again, other)] == [False, True, False]
        assert same(rounds.weights, expected)

    play(scenario, 2)


def test_a_shared_push_that_comes_again_goes_on():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {"a": random_arrays(1), "b": random_arrays(2)}
        expected = stepped(rounds.weights, list(gradients.values()))
        first = rounds.share("a", gradients["a"])
        await settle()
        first.task.cancel()
        again = rounds.share("a", gradients["a"])
        await settle()
        other = rounds.share("b", gradients["b"])
        assert (await again).result.repeat
        await other
        assert same(rounds.weights, expected)

    play(scenario, 2)


# The slot


class Gate:
    """Holds up a function of `Reducer`, in its thread, until it is opened."""

    def __init__(self, monkeypatch, name):
        self.entered, self.opened, self.calls = threading.Event(), threading.Event(), 0
        inner = getattr(Reducer, name)

        def held_up(*arguments, **named):
            self.calls += 1
            self.entered.set()
            assert self.opened.wait(10)
            return inner(*arguments, **named)

        monkeypatch.setattr(offload, "INLINE_ELEMENTS", -1)
        monkeypatch.setattr(Reducer, name, held_up)


def test_a_round_that_is_broken_while_it_waits_for_readers_makes_no_step():
    async def scenario(rounds):
        await rounds.join("a", "b")
        snapshots = rounds.job.snapshots
        held = []
        for number in range(2):
            held.append(snapshots.hold())
            await rounds.step({"a": random_arrays(number), "b": random_arrays(number + 10)})
        held.append(snapshots.hold())
        before = rounds.weights
        first, second = rounds.upload("a"), rounds.upload("b")
        first.send_all(rounds.messages(random_arrays(1)))
        second.send_all(rounds.messages(random_arrays(2)))
        await until(lambda: snapshots.wanted)
        leaving = asyncio.create_task(leaves(rounds, "b", second))  # which the job notes after this step
        assert type(await second.error()) is errors.PushWithdrawn
        for snapshot in held:
            snapshots.release(snapshot)
        await leaving
        await settle()
        assert rounds.version == 2
        assert same(rounds.weights, before)
        await rounds.join("b")
        again = rounds.upload("b")
        again.send_all(rounds.messages(random_arrays(4)))
        await again
        await first
        assert same(rounds.weights, stepped(before, [random_arrays(1), random_arrays(4)]))

    play(scenario, 2)


# The order of frames


def backwards(rounds, gradient):
    return rounds.messages(gradient)[::-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_frames_may_come_in_any_order(workers):
    async def scenario(rounds):
        names = "ab"[:workers]
        await rounds.join(*names)
        gradients = [random_arrays(ord(name)) for name in names]
        expected = stepped(rounds.weights, gradients)
        uploads = [rounds.upload(name) for name in names]
        for upload, gradient in zip(uploads, gradients, strict=True):
            upload.send_all(backwards(rounds, gradient))
        for upload in uploads:
            await upload
        assert same(rounds.weights, expected)

    play(scenario, workers)


@pytest.mark.parametrize("frame", [Frame.of(0, (1 << 63) - 8, np.ones(2, "f4")), Frame.of(9, 0, np.ones(2, "f4"))])
def test_a_frame_far_outside_is_refused_and_holds_nobody_up(frame):
    async def scenario(rounds):
        await rounds.join("a", "b")
        first, second = rounds.upload("a"), rounds.upload("b")
        second.send([frame])
        await settle()
        first.send_all(rounds.messages(random_arrays(1)))
        assert isinstance(await second.error(), errors.InvalidArgument)
        again = rounds.upload("b")
        again.send_all(rounds.messages(random_arrays(2)))
        await again
        await first
        assert same(rounds.weights, stepped(rounds.first, [random_arrays(1), random_arrays(2)]))

    play(scenario, 2)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_few_bytes_that_stand_for_many_numbers_get_no_room_beside_that_of_the_job(value):
    count = 1 << 20
    groups = (GroupSpec("g", {}, (ParameterSpec("a", (count,), "float32"),)),)
    payload = np.array([7], "<u4").tobytes() + np.array([value], "<f4").tobytes()
    wire = tensor_pb2.Frame(count=count, encoding=tensor_pb2.ENCODING_TOPK, payload=payload)

    async def scenario(rounds):
        await rounds.join("a")
        await rounds.step({"a": random_arrays(1, groups)})
        expected = rounds.weights
        _, frames = decode(pb.PushRequest, pb.PushRequest(frames=[wire]).SerializeToString())
        tracemalloc.start()
        try:
            push = rounds.upload("a", frames, last=True)
            if np.isnan(value):
                error = await push.error()
                assert type(error) is errors.NonfiniteGradient
                assert "'a'" in str(error)
            else:
                await push
                expected["a"][7] -= np.float32(value)
            assert tracemalloc.get_traced_memory()[1] < 2 * count
        finally:
            tracemalloc.stop()
        assert same(rounds.weights, expected)

    play(scenario, 0, groups=groups)


# Changes meanwhile


def test_a_group_that_is_added_after_the_announcement_can_have_a_gradient_already():
    async def scenario(rounds):
        await rounds.join("a", "b")
        first = rounds.upload("a")
        await settle()
        await rounds.add_group()
        gradients = [random_arrays(1), random_arrays(2) | {"x": np.arange(3, dtype="f4")}]
        expected = stepped(rounds.weights, gradients)
        second = rounds.upload("b")
        for upload, gradient in zip((first, second), gradients, strict=True):
            upload.send_all(rounds.messages(gradient))
        await first
        await second
        assert same(rounds.weights, expected)

    play(scenario, 2)


@pytest.mark.parametrize("shares", [False, True])
def test_a_group_that_is_added_while_a_round_is_received_stays_as_it_is(shares):
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = [random_arrays(1), random_arrays(2)]
        first = rounds.upload("a")
        second = rounds.share("b", gradients[1]) if shares else rounds.upload("b")
        await settle()
        await rounds.add_group()
        expected = stepped(rounds.weights, gradients)
        for upload, gradient in zip((first, second), gradients, strict=True):
            upload.send_all(rounds.messages(gradient))
        await first
        await second
        assert same(rounds.weights, expected)
        await rounds.step(
            {"a": random_arrays(3) | {"x": np.ones(3, "f4")}, "b": random_arrays(4) | {"x": np.ones(3, "f4")}}
        )

    play(scenario, 2)


def test_shared_gradients_from_before_a_group_was_added_leave_it_as_it_is():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = [random_arrays(1), random_arrays(2)]
        first = rounds.share("a", gradients[0])
        await settle()
        await rounds.add_group()
        expected = stepped(rounds.weights, gradients)
        second = rounds.share("b", gradients[1])
        await first
        await second
        assert same(rounds.weights, expected)

    play(scenario, 2)


def test_options_that_do_not_go_together_within_a_round():
    async def scenario(rounds):
        await rounds.join("a", "b")
        here = GroupUpdate("g", {"lr": 0.5}, expected_revision=0)
        first = rounds.upload("a", updates=(here,))
        await settle()
        conflicting = rounds.upload("b", updates=(GroupUpdate("g", {"lr": 0.25}, expected_revision=0),))
        assert type(await conflicting.error()) is errors.OptionConflict
        second = rounds.upload("b", updates=(here,))
        first.send(last=True)
        second.send(last=True)
        await first
        await second
        assert rounds.job.state.groups.options[0].options["lr"] == 0.5

    play(scenario, 2)


def test_an_option_that_has_become_wrong_before_the_step_ends_its_push_alone():
    async def scenario(rounds):
        await rounds.join("a", "b")
        update = GroupUpdate("g", {"lr": 0.5}, expected_revision=0)
        first, second = rounds.upload("a", updates=(update,)), rounds.upload("b")
        await settle()
        await rounds.job.editor.update_group(GroupUpdate("g", {"lr": 2.0}))
        first.send_all(rounds.messages(random_arrays(1)))
        second.send_all(rounds.messages(random_arrays(2)))
        assert type(await first.error()) is errors.OptionConflict
        assert same(rounds.weights, rounds.first)
        await rounds.job.editor.update_group(GroupUpdate("g", {"lr": 1.0}))
        again = rounds.upload("a")
        again.send_all(rounds.messages(random_arrays(3)))
        await again
        await second
        assert same(rounds.weights, stepped(rounds.first, [random_arrays(3), random_arrays(2)]))

    play(scenario, 2)


# Memory


def test_39_pushes_that_find_no_memory_wait_and_are_refused_by_name(monkeypatch):
    """Where the number of workers is not known, what pushes hold must fit into what the server has left."""
    groups = (GroupSpec("g", {}, (ParameterSpec("a", (1000,), "float32"),)),)

    async def scenario(rounds):
        await rounds.join("a", "b")
        memory = rounds.catalog.memory
        await rounds.job.editor.set_policy(Sync("live"))
        memory.limit = memory.planned + 2 * (4000 + FRAME_BYTES) - 1
        first = rounds.upload("a")
        first.send_all(rounds.messages(random_arrays(1, groups)))
        await until(first._given.empty)
        monkeypatch.setattr(holding, "PATIENCE_SECONDS", 0.05)
        second = rounds.upload("b")
        second.send_all(rounds.messages(random_arrays(2, groups)))
        error = await second.error()
        assert type(error) is errors.TooManyBytes
        assert "--max-memory-bytes" in str(error)
        memory.limit += 1
        again = rounds.upload("b")
        again.send_all(rounds.messages(random_arrays(2, groups)))
        await again
        await first
        planned = memory.planned
        assert planned <= memory.limit
        await rounds.step({name: random_arrays(ord(name), groups) for name in "ab"})
        assert memory.planned == planned, "what was held is free again"

    play(scenario, 2, groups=groups)


def test_39_a_policy_that_plans_for_fewer_pushes_costs_those_that_wait_nothing():
    async def scenario(rounds):
        await rounds.join("a", "b")
        uploads = [rounds.upload(name) for name in "ab"]
        for name, upload in zip("ab", uploads, strict=True):
            upload.send_all(rounds.messages(random_arrays(ord(name))))
        await until(lambda: all(upload._given.empty() for upload in uploads))
        await rounds.job.editor.set_policy(Async())
        rounds.catalog.memory.limit = rounds.catalog.memory.planned
        for upload in uploads:
            await upload
        assert rounds.version == 2
        assert not rounds.job.fold.failure

    play(scenario, 3)


def test_a_push_whose_call_has_ended_is_not_in_the_round_that_follows_a_broken_one():
    """Its call ends while its round waits for readers; the round breaks, because another push has a NaN."""

    async def scenario(rounds):
        await rounds.join("a", "b")
        snapshots, held = rounds.job.snapshots, []
        for number in range(2):
            held.append(snapshots.hold())
            await rounds.step({"a": random_arrays(number), "b": random_arrays(number + 10)})
        held.append(snapshots.hold())
        bad = random_arrays(2)
        bad["d"][0] = np.nan
        gone, wrong = rounds.upload("a"), rounds.upload("b")
        gone.send_all(rounds.messages(random_arrays(1)))
        wrong.send_all(rounds.messages(bad))
        await until(lambda: snapshots.wanted)
        gone.task.cancel()
        await settle()
        for snapshot in held:
            snapshots.release(snapshot)
        assert type(await wrong.error()) is errors.NonfiniteGradient
        await until(rounds.idle)
        await rounds.step({"a": random_arrays(3), "b": random_arrays(4)})

    play(scenario, 2)


def test_a_call_that_repeats_a_push_keeps_it_when_the_first_call_ends():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = {"a": random_arrays(1), "b": random_arrays(2)}
        expected = stepped(rounds.weights, list(gradients.values()))
        first = rounds.upload("a")
        first.send_all(rounds.messages(gradients["a"]))
        await until(first._given.empty)
        again = rounds.upload("a", rounds.messages(gradients["a"])[0])
        await settle()
        first.task.cancel()
        await settle()
        for frames in rounds.messages(gradients["a"])[1:]:
            again.send(frames)
        again.send(last=True)
        other = rounds.upload("b")
        other.send_all(rounds.messages(gradients["b"]))
        assert (await again).result.repeat
        await other
        assert same(rounds.weights, expected)

    play(scenario, 2)


def test_a_late_gradient_beside_a_flush_is_told_that_it_is_late():
    async def scenario(rounds):
        await rounds.job.editor.set_policy(Sync(3, quorum=2))
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 4}))
        await rounds.join("a", "b", "c")
        both = [rounds.upload(name) for name in "ab"]
        for upload in both:
            upload.send_all(rounds.messages(random_arrays(1)))
        for upload in both:
            await upload
        flush = rounds.upload("a", last=True, flush=True)
        await until(lambda: rounds.job.pushes.waiting.waits("a"))
        late = rounds.upload("c")
        assert type(await late.error()) is errors.RoundClosed
        mixed = rounds.upload("c")
        assert "all workers of a round flush" in str(await mixed.error())
        partner = rounds.upload("b", last=True, flush=True)
        for upload in (flush, partner):
            assert (await upload).result.applied_version == 1

    play(scenario, 3)


# The end of a job


def announced(rounds):
    return [rounds.upload("a")]


def begun(rounds):
    return [rounds.upload("a"), rounds.upload("b")]


def half_received(rounds):
    uploads = begun(rounds)
    uploads[0].send_all(rounds.messages(random_arrays(1)))
    uploads[1].send(rounds.messages(random_arrays(2))[0])
    return uploads


def both_kinds(rounds):
    return [rounds.share("a", random_arrays(1)), rounds.upload("b", rounds.messages(random_arrays(2))[0])]


@pytest.mark.parametrize("stage", [announced, begun, half_received, both_kinds])
def test_pushes_of_a_job_that_is_deleted_fail(stage):
    async def scenario(rounds):
        await rounds.join("a", "b")
        uploads = stage(rounds)
        await settle()
        await rounds.catalog.delete("job")
        for upload in uploads:
            upload.send_all(rounds.messages(random_arrays(3))[1:])
            assert type(await upload.error()) is errors.UnknownJob
        assert rounds.catalog.memory.planned == 0

    play(scenario, 2)


def test_a_job_that_is_deleted_while_its_step_waits_for_readers():
    async def scenario(rounds):
        await rounds.join("a", "b")
        snapshots = rounds.job.snapshots
        for number in range(2):
            snapshots.hold()
            await rounds.step({"a": random_arrays(number), "b": random_arrays(number + 10)})
        snapshots.hold()
        uploads = begun(rounds)
        for upload in uploads:
            upload.send_all(rounds.messages(random_arrays(1)))
        await until(lambda: snapshots.wanted)
        await rounds.catalog.delete("job")
        for upload in uploads:
            assert type(await upload.error()) is errors.UnknownJob

    play(scenario, 2)


def test_a_job_that_is_deleted_while_it_steps_answers_that_step(monkeypatch):
    gate = Gate(monkeypatch, "divide")

    async def scenario(rounds):
        await rounds.join("a", "b")
        uploads = begun(rounds)
        for upload in uploads:
            upload.send_all(rounds.messages(random_arrays(1)))
        await until(gate.entered.is_set)
        deleting = asyncio.create_task(rounds.catalog.delete("job"))
        await settle()
        assert not deleting.done()
        gate.opened.set()
        await deleting
        for upload in uploads:
            assert (await upload).result.applied_version == 1

    play(scenario, 2)


def test_a_server_that_stops_lets_a_round_go_on_that_has_begun():
    async def scenario(rounds):
        await rounds.join("a", "b")
        snapshots, held = rounds.job.snapshots, []
        for number in range(2):
            held.append(snapshots.hold())
            await rounds.step({"a": random_arrays(number), "b": random_arrays(number + 10)})
        held.append(snapshots.hold())
        uploads = begun(rounds)
        for upload in uploads:
            upload.send_all(rounds.messages(random_arrays(1)))
        await until(lambda: snapshots.wanted)
        rounds.catalog.refuse_waiting(errors.ShuttingDown())
        for snapshot in held:
            snapshots.release(snapshot)
        for upload in uploads:
            await upload
        assert rounds.version == 3

    play(scenario, 2)


def test_a_server_that_stops_refuses_what_waits():
    async def scenario(rounds):
        await rounds.join("a", "b", "c")
        whole, half = begun(rounds)
        whole.send_all(rounds.messages(random_arrays(1)))
        half.send(rounds.messages(random_arrays(2))[0])
        await until(whole._given.empty)
        rounds.catalog.refuse_waiting(errors.ShuttingDown())
        for upload in (whole, half):
            assert type(await upload.error()) is errors.ShuttingDown
        assert rounds.version == 0

    play(scenario, 3)
