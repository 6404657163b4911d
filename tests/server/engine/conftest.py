"""Jobs without a server: the engine driven by hand, with time and frames made up."""

import asyncio

import numpy as np
import pytest
from tests.server.engine.clock import Clock

from optd_server.engine.catalog import Catalog
from optd_server.engine.memory import Memory
from optd_server.engine.offload import Offload
from optd_wire.frames import Frame
from optd_wire.values import GroupSpec, JobSpec, ParameterSpec, PushHeader


class Engine:
    """A catalog with one job `job` of two groups, and what tests do with it."""

    def __init__(self, limit=1 << 20):
        self.offload = Offload(1)
        self.clock = Clock()
        self.catalog = Catalog(memory=Memory(limit), offload=self.offload, clock=self.clock, lease_seconds=10)

    async def create(self, policy, **defaults):
        groups = (
            GroupSpec("g", {}, (ParameterSpec("w", (4,), "float32"),)),
            GroupSpec("h", {"lr": 10.0}, (ParameterSpec("b", (2,), "float64"),)),
        )
        spec = JobSpec("job", "sgd", {"lr": 1.0, **defaults}, groups, policy)
        with self.catalog.upload(spec) as upload:
            upload.sink.write_all([Frame.of(0, 0, np.zeros(4, "f4")), Frame.of(1, 0, np.zeros(2))])
            return await self.catalog.finish(upload)

    async def push(self, job, worker, sequence, value=1.0, *, epoch=1, frames=None, **header):
        frames = [Frame.of(0, 0, np.full(4, value, "f4"))] if frames is None else frames
        header = PushHeader("job", worker, epoch, sequence, 0, **header)
        return await job.push(header, Upload(frames))


class Upload:
    """Frames that are at hand."""

    def __init__(self, frames):
        self.frames = frames

    async def receive(self, write):
        await write(self.frames)

    def park(self):
        pass


def weights(job):
    return [array.tolist() for group in range(2) for array in job.snapshots.current.arrays(group)]


async def settle():
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def play():
    """Runs a scenario `async def scenario(engine)` on a loop of its own."""

    def run(scenario, **arguments):
        async def whole():
            engine = Engine(**arguments)
            try:
                async with asyncio.timeout(20):
                    await scenario(engine)
            finally:
                await engine.catalog.close()
                engine.offload.close()

        asyncio.run(whole())

    return run
