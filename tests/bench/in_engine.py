"""A job in this process, without a server: pushes go straight into the engine."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from bench.ours import processors
from bench.sizes import Shapes, arrays, joined
from optd_server.clock import SystemClock
from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.memory import Memory
from optd_server.engine.offload import Offload
from optd_server.optim.backends.registry import choose
from optd_wire.frames import Frame, Received
from optd_wire.values import Async, GroupSpec, JobSpec, ParameterSpec, PushHeader

WEIGHTS, GRADIENTS = 1, 2
MEMORY_BYTES = 1 << 32


class _AtHand:
    """The gradient of a push that is here already."""

    def __init__(self, frames: Sequence[Received]) -> None:
        self._frames = frames

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        await write(self._frames)

    def park(self) -> None:
        """Nobody needs the room."""


class InEngine:
    """One worker of one job. Each step is admitted, validated, reduced, applied, published and answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, job: Job, epoch: int, gradient: np.ndarray) -> None:
        self._loop, self._job, self._epoch = loop, job, epoch
        self._frames = [Frame.of(0, 0, gradient)]
        self._sequence = 0

    def median(self, steps: int) -> float:
        """The median time of so many steps, in seconds."""
        return statistics.median(self._loop.run_until_complete(self._steps(steps)))

    def steps_a_second(self, steps: int) -> float:
        """The rate of so many steps."""
        return steps / sum(self._loop.run_until_complete(self._steps(steps)))

    async def _steps(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            self._sequence += 1
            version = self._job.version
            header = PushHeader(
                "job", "w", self._epoch, self._sequence, version.version, known_revision=version.revision
            )
            upload = _AtHand(self._frames)
            began = time.perf_counter()
            await self._job.push(header, upload)
            times.append(time.perf_counter() - began)
        return times

    def weights(self) -> np.ndarray:
        """The job's weights."""
        with self._job.reading() as reading:
            return np.concatenate(reading.snapshot.arrays(0))


@contextmanager
def in_engine(shapes: Shapes, algorithm: str = "sgd") -> Iterator[InEngine]:
    """A job of parameters of these shapes, and its worker."""
    loop, offload = asyncio.new_event_loop(), Offload(processors(), choose("auto"))
    catalog = Catalog(memory=Memory(MEMORY_BYTES), offload=offload, clock=SystemClock(), lease_seconds=3600)
    parameters = tuple(ParameterSpec(name, shape, "float32") for name, shape in shapes.items())
    spec = JobSpec("job", algorithm, {"lr": 1e-3}, (GroupSpec("g", {}, parameters),), Async())

    async def create() -> tuple[Job, int]:
        with catalog.upload(spec, "bench") as upload:
            upload.sink.write_all([Frame.of(0, 0, joined(list(arrays(shapes, WEIGHTS).values())))])
            await catalog.prepare(algorithm, spec.groups)
            job = await catalog.finish(upload)
        return job, (await job.join("w", None)).epoch

    try:
        job, epoch = loop.run_until_complete(create())
        yield InEngine(loop, job, epoch, joined(list(arrays(shapes, GRADIENTS).values())))
    finally:
        loop.run_until_complete(catalog.close())
        offload.close()
        loop.close()
