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


def arrays_of(model):
    yield from (array for weights in model.snapshots._sets for array in weights.buffers.all_slabs())
    yield from (array for *_, state in model.groups.slabs() for array in state.state.values())
    yield from model.slots.last.slabs[0]


def test_it_does_not_wait_for_the_collector_of_garbage(play, without_collector):
    async def scenario(engine):
        job = engine.create(Async(), momentum=0.9)
        await job.join("a", None, now=0)
        await engine.push(job, "a", 1)
        known = [weakref.ref(array) for array in arrays_of(job.model)]
        assert len(known) == 2 * 2 + 2 + 2
        await engine.catalog.delete("job")
        await settle()
        assert [each() for each in known] == [None] * len(known)
        assert job.model.name == "job"  # which somebody still has

    play(scenario)


def test_what_a_reader_holds_goes_when_it_has_finished(play, without_collector):
    async def scenario(engine):
        job = engine.create(Async())
        snapshot = job.model.snapshots.hold()
        held = snapshot.arrays(0)[0]
        known = weakref.ref(held)
        await engine.catalog.delete("job")
        assert snapshot.arrays(0)[0].tolist() == [0.0] * 4
        job.model.snapshots.release(snapshot)
        del held
        assert known() is None

    play(scenario)


def test_the_slot_of_a_push_that_is_broken_off_goes_too(play):
    async def scenario(engine):
        job = engine.create(Sync(2))
        for worker in "ab":
            await job.join(worker, None, now=0)
        started = []
        job.model.slots.take(started.append)
        (slot,) = started
        slot.fit(job.model.groups.extents)
        await engine.catalog.delete("job")
        assert slot.buffers.slabs  # somebody writes there
        job.model.slots.give_back(slot)
        assert not slot.buffers.slabs
        with pytest.raises(errors.UnknownJob):
            engine.catalog.find("job")

    play(scenario)


def test_touching_leaves_what_is_there():
    array = np.arange(pages.PIECE // 8 * 2 + 5, dtype=np.int64)
    parts = list(pages.pieces([array, np.zeros(3)]))
    assert sum(len(part) for part in parts) == len(array)
    touched = {pages.touch(part) for part in parts}
    assert len(touched) == 1  # the system can, or it cannot
    assert np.array_equal(array, np.arange(len(array)))
