import asyncio
from dataclasses import replace

import numpy as np
import pytest

from optd_server.store.extents import extent_of
from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot, WeightSet
from optd_wire.errors import UnknownJob
from optd_wire.layout import lay_out
from optd_wire.values import JobVersion, ParameterSpec

LAYOUTS = (lay_out([ParameterSpec("w", (4,), "float32")]),)


def snapshots(most=3):
    steps = (np.zeros(1, np.int64), np.zeros(1, np.int64))
    return Snapshots(Snapshot(JobVersion(), LAYOUTS, (), WeightSet([extent_of(LAYOUTS)]), steps, ()), most=most)


async def step(kept: Snapshots):
    weights = await kept.spare()
    version = replace(kept.current.version, version=kept.current.version.version + 1)
    kept.publish(replace(kept.current, version=version, weights=weights))


def test_two_sets_are_enough_while_nobody_reads():
    async def scenario():
        kept = snapshots()
        seen = set()
        for _ in range(10):
            await step(kept)
            seen.add(id(kept.current.weights))
        assert len(seen) == 2

    asyncio.run(scenario())


def test_what_is_held_is_never_written_to():
    async def scenario():
        kept = snapshots()
        held = kept.hold()
        held.arrays(0)[0][:] = 1
        for _ in range(10):
            await step(kept)
            assert kept.current.weights is not held.weights
            kept.current.arrays(0)[0][:] = 2
        assert (held.arrays(0)[0] == 1).all()

    asyncio.run(scenario())


def test_a_step_waits_when_all_sets_are_read_and_goes_on_when_one_is_released():
    async def scenario():
        kept = snapshots(most=2)
        held = kept.hold()
        await step(kept)
        waiting = asyncio.create_task(step(kept))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        kept.release(held)
        await waiting
        assert kept.current.version.version == 2
        assert kept.current.weights is held.weights

    asyncio.run(scenario())


def test_a_reader_that_comes_after_the_end_of_its_job_is_told_so():
    """A step may end with its job: whoever then answers it finds no weights any more."""
    held = snapshots()
    first = held.hold()
    held.close(UnknownJob(job="job"))
    held.release_all()
    with pytest.raises(UnknownJob):
        held.hold()
    held.release(first)
