"""Where arithmetic runs: in other threads where it is much, at once where a thread would cost more than the work."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

# About 100 microseconds of one kernel; handing over to a thread and back costs about as much.
INLINE_ELEMENTS = 32 * 1024


class Offload:
    """Runs functions that work on many elements, off the event loop."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="arithmetic")

    async def run(self, elements: int, work: Callable[[], T]) -> T:
        """Runs `work`, which touches about `elements` elements, and returns what it returns.

        A caller that is cancelled gets its cancellation when the work is done, not before: what the work reads and
        writes must not be given to somebody else under its hands.
        """
        if elements <= INLINE_ELEMENTS:
            return work()
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            raise

    def close(self) -> None:
        """Waits for what runs, and takes no more."""
        self._pool.shutdown(wait=True)
