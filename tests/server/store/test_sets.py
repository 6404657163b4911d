"""Sets of weights that are read in place, and how they come to be shared."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers
from optd_server.store.gradients import Gradient, Slots
from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot, WeightSet
from optd_wire.layout import lay_out
from optd_wire.values import JobVersion, ParameterSpec

LAYOUT = lay_out([ParameterSpec("w", (4,), "float32"), ParameterSpec("x", (2,), "float64")])
EXTENTS = (extent_of([LAYOUT]),)
STEPS = (np.zeros(1, np.int64), np.zeros(1, np.int64))


def snapshots(most=3):
    return Snapshots(Snapshot(JobVersion(), (LAYOUT,), (), WeightSet(EXTENTS), STEPS, ()), most=most)


async def step(kept):
    weights = await kept.spare()
    version = replace(kept.current.version, version=kept.current.version.version + 1)
    for target in weights.buffers.all_slabs():
        target[:] = version.version
    kept.publish(replace(kept.current, version=version, weights=weights))


def run(scenario, *arguments):
    async def whole():
        async with asyncio.timeout(10):
            await scenario(*arguments)

    asyncio.run(whole())


def test_one_set_in_place_leaves_two_for_steps():
    async def scenario():
        kept = snapshots()
        held = kept.hold()
        assert kept.settle(held)
        for _ in range(5):
            await step(kept)
        other = kept.hold()
        assert not kept.settle(other)
        kept.release(other)
        for _ in range(5):
            await step(kept)
        assert (held.arrays(0)[0] == 0).all()
        kept.unsettle(held)
        kept.release(held)
        now = kept.hold()
        assert kept.settle(now)

    run(scenario)


@pytest.mark.parametrize("most", [3, 4, 5])
def test_whatever_settles_steps_go_on(most):
    async def scenario():
        kept = snapshots(most)
        settled = []
        for _ in range(3 * most):
            held = kept.hold()
            if kept.settle(held):
                settled.append((held, held.version.version))
            else:
                kept.release(held)
            await step(kept)
        assert len(settled) == most - 2
        assert len(kept._sets) <= most
        for held, version in settled:
            assert (held.arrays(0)[0] == version).all()

    run(scenario)


def test_any_number_of_readers_may_be_in_place_in_one_set():
    async def scenario():
        kept = snapshots()
        held = [kept.hold() for _ in range(4)]
        assert all(kept.settle(one) for one in held)
        await step(kept)
        for one in held[:-1]:
            kept.unsettle(one)
            kept.release(one)
        later = kept.hold()
        assert not kept.settle(later)
        kept.unsettle(held[-1])
        kept.release(held[-1])
        assert kept.settle(later)

    run(scenario)


def test_share_keeps_the_weights_and_who_reads_them():
    async def scenario():
        kept = snapshots()
        await step(kept)
        before = kept.hold()
        kept.share()
        assert not before.weights.shared
        assert kept.current.weights.shared
        assert kept.current.version == before.version
        assert all((array == 1).all() for array in kept.current.arrays(0))
        assert len(kept.current.weights.region_numbers()) == 1
        await step(kept)
        await step(kept)
        assert (before.arrays(0)[0] == 1).all()
        kept.release(before)
        assert before.weights.holders == 0
        for _ in range(4):
            await step(kept)
            assert kept.current.weights.shared
        assert all(weights.shared for weights in kept._sets)
        again = kept.current.weights
        kept.share()
        assert kept.current.weights is again

    run(scenario)


def test_weights_of_an_added_group_are_shared_like_the_others():
    async def scenario():
        kept = snapshots()
        kept.share()
        added = FlatBuffers([extent_of([LAYOUT], 1)])
        for array in added.all_slabs():
            array[:] = 5
        kept.current.weights.buffers.adopt(kept.placed(added))
        kept.publish(kept.current)
        assert len(kept.current.weights.region_numbers()) == 2
        assert (kept.current.weights.buffers.arrays[1][0] == 5).all()
        spare = await kept.spare()
        assert len(spare.region_numbers()) == 2
        assert len({region.number for region in kept.shared_regions()}) == 4

    run(scenario)


def test_slots_are_bounded_and_handed_out_in_the_order_of_asking():
    slots, got = Slots(most=2), []
    for name in "abcd":
        slots.take(lambda slot, name=name: got.append((name, slot)))
    assert [name for name, _ in got] == ["a", "b"]
    slots.give_back(got[0][1])
    assert got[2] == ("c", got[0][1])
    slots.give_back(got[1][1])
    assert got[3] == ("d", got[1][1])


def test_the_last_gradient_stays_until_its_slot_is_needed():
    slots, got = Slots(most=1), []
    slots.take(got.append)
    gradient = Gradient([], [])
    slots.keep(got[0], gradient)
    assert slots.last is gradient
    with slots.reading():
        slots.take(got.append)
        assert len(got) == 1
        assert slots.last is gradient
    assert got == [got[0]] * 2
    assert slots.last is None
    slots.keep(got[1], gradient)
    slots.forget()
    assert slots.last is None
    slots.take(got.append)
    assert len(got) == 3
