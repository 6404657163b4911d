"""A job that is deleted lets go of its memory at once, whoever still refers to it."""

import gc
import weakref

import numpy as np
import pytest
from tests.server.engine.conftest import settle

from optd_server.store import pages
from optd_wire import errors
from optd_wire.values import Async, Sync


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def arrays_of(job):
    yield from (array for weights in job.snapshots._sets for array in weights.buffers.all_slabs())
    yield from (array for *_, state in job.state.groups.slabs() for array in state.state.values())
    yield from job.slots.last.slabs[0]


def test_it_does_not_wait_for_the_collector_of_garbage(play, without_collector):
    async def scenario(engine):
        job = await engine.create(Async(), momentum=0.9)
        await job.join("a", None)
        await engine.push(job, "a", 1)
        known = [weakref.ref(array) for array in arrays_of(job)]
        assert len(known) == 2 * 2 + 1 + 2  # only one parameter has had a gradient, and so a momentum
        await engine.catalog.delete("job")
        await settle()
        assert [each() for each in known] == [None] * len(known)
        assert job.name == "job"  # which somebody still has

    play(scenario)


def test_what_a_reader_holds_goes_when_it_has_finished(play, without_collector):
    async def scenario(engine):
        job = await engine.create(Async())
        snapshot = job.snapshots.hold()
        held = snapshot.arrays(0)[0]
        known = weakref.ref(held)
        await engine.catalog.delete("job")
        assert snapshot.arrays(0)[0].tolist() == [0.0] * 4
        job.snapshots.release(snapshot)
        del held
        assert known() is None

    play(scenario)


def test_the_slot_of_a_push_that_is_broken_off_goes_too(play):
    async def scenario(engine):
        job = await engine.create(Sync(2))
        for worker in "ab":
            await job.join(worker, None)
        started = []
        job.slots.take(started.append)
        (slot,) = started
        slot.fit(job.state.groups.extents)
        await engine.catalog.delete("job")
        assert slot.buffers.slabs  # somebody writes there
        job.slots.give_back(slot)
        assert not slot.buffers.slabs
        with pytest.raises(errors.UnknownJob):
            engine.catalog.find("job")

    play(scenario)


def test_touching_leaves_what_is_there():
    array = np.arange(pages.PIECE // 8 * 2 + 5, dtype=np.int64)
    parts = list(pages.pieces([array, np.zeros(3)]))
    assert sum(len(part) for part in parts) == len(array)
    touched = {pages.prefault(part) for part in parts}
    assert len(touched) == 1  # the system can, or it cannot
    assert np.array_equal(array, np.arange(len(array)))
