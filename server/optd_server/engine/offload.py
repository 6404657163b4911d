"""Runs large arithmetic in other threads, and small arithmetic at once, because a thread would cost more than it."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from optd_server.engine.compute import INLINE_ELEMENTS
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.store.flat import Array
from optd_server.store.pages import give_back, pieces, touch
from optd_wire.dtypes import COMPUTED, DTYPES

T = TypeVar("T")


class Offload:
    """Thread pools for work on many elements, and the number of threads and the kernels that it uses."""

    def __init__(self, threads: int, kernels: Backend = BLOCKED) -> None:
        self.threads = threads
        self.kernels = kernels
        self._arithmetic = ThreadPoolExecutor(threads, thread_name_prefix="arithmetic")
        # A pool of its own, so that a pull never waits for a step.
        self._copying = ThreadPoolExecutor(max(2, threads), thread_name_prefix="copying")

    def is_little(self, elements: int) -> bool:
        """Whether work on this many elements runs at once, in the thread of its caller."""
        return elements <= INLINE_ELEMENTS

    async def run(self, elements: int, work: Callable[[], T]) -> T:
        """Runs `work`, which computes on about `elements` elements, and returns its result.

        A cancelled caller receives its cancellation only when the work is done, because the memory that the work uses
        must not be reused before that.
        """
        return await self._run(self._arithmetic, elements, work)

    async def copy(self, elements: int, work: Callable[[], T]) -> T:
        """Does the same as `run`, for work that only copies numbers."""
        return await self._run(self._copying, elements, work)

    async def touch(self, arrays: Iterable[Array]) -> None:
        """Prefaults arrays, so that no step waits for the system to provide their pages; see `pages.touch`.

        A cancelled caller receives its cancellation after at most one more piece in each thread.
        """
        waiting = list(pieces(arrays))
        del arrays  # the traceback of a cancellation would keep them alive

        async def work() -> None:
            while waiting:
                await self._run(self._copying, len(waiting[-1]), partial(touch, waiting.pop()))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(max(2, self.threads)):
                    group.create_task(work())
        finally:
            waiting.clear()

    async def give_back_memory(self) -> None:
        """Returns freed memory to the system."""
        await asyncio.get_running_loop().run_in_executor(self._copying, give_back)

    async def prepare(self, algorithm: Algorithm, dtypes: Iterable[str]) -> None:
        """Prepares all kernels that steps on these dtypes need, so that no step waits for a compiler."""
        wanted = sorted({COMPUTED[dtype] for dtype in dtypes})

        def work() -> None:
            for dtype in wanted:
                self.kernels.prepare(algorithm, DTYPES[dtype])

        await asyncio.get_running_loop().run_in_executor(self._copying, work)

    async def _run(self, pool: ThreadPoolExecutor, elements: int, work: Callable[[], T]) -> T:
        if self.is_little(elements):
            return work()
        running = asyncio.get_running_loop().run_in_executor(pool, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            raise

    def close(self) -> None:
        """Waits for running work, and accepts no more."""
        self._arithmetic.shutdown(wait=True)
        self._copying.shutdown(wait=True)
