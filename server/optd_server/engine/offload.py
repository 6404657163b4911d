"""Where arithmetic runs: in other threads where it is much, at once where a thread would cost more than the work."""

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
    """Runs functions that work on many elements, off the event loop; knows how many threads and which kernels."""

    def __init__(self, threads: int, kernels: Backend = BLOCKED) -> None:
        self.threads = threads
        self.kernels = kernels
        self._arithmetic = ThreadPoolExecutor(threads, thread_name_prefix="arithmetic")
        # Of its own, so that a pull never waits for a step.
        self._copying = ThreadPoolExecutor(max(2, threads), thread_name_prefix="copying")

    def is_little(self, elements: int) -> bool:
        """Whether work on so many elements is done at once, by whoever asks for it."""
        return elements <= INLINE_ELEMENTS

    async def run(self, elements: int, work: Callable[[], T]) -> T:
        """Runs `work`, which computes on about `elements` elements, and returns what it returns.

        A caller that is cancelled gets its cancellation when the work is done, not before: what the work reads and
        writes must not be given to somebody else under its hands.
        """
        return await self._run(self._arithmetic, elements, work)

    async def copy(self, elements: int, work: Callable[[], T]) -> T:
        """As `run`, for work that only moves numbers."""
        return await self._run(self._copying, elements, work)

    async def touch(self, arrays: Iterable[Array]) -> None:
        """Has the system give memory to arrays before a step waits for that; see `pages.touch`.

        A caller that is cancelled gets its cancellation after at most a piece for each thread.
        """
        waiting = list(pieces(arrays))
        del arrays  # a cancellation keeps what is named here for long

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
        """Has what was freed go back to the system."""
        await asyncio.get_running_loop().run_in_executor(self._copying, give_back)

    async def prepare(self, algorithm: Algorithm, dtypes: Iterable[str]) -> None:
        """Has all kernels ready that steps on data of some dtypes need, so that no step waits for a compiler."""
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
        """Waits for what runs, and takes no more."""
        self._arithmetic.shutdown(wait=True)
        self._copying.shutdown(wait=True)
