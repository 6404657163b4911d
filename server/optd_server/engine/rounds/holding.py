"""The memory of pushes that are held: gradients that have been received and wait for their round."""

import asyncio

from optd_server.engine.planning import JobMemory
from optd_wire.errors import MemoryExceeded

PATIENCE_SECONDS = 30.0
"""How long a push waits for memory. Nothing more is read from its sender meanwhile."""


class Holding:
    """Counts the bytes that the pushes of one job hold. Lives on one event loop."""

    def __init__(self, memory: JobMemory) -> None:
        self._memory = memory
        self._held = 0
        self._freed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Count bytes as held, after waiting for room; raise `MemoryExceeded` if that takes too long."""
        until = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            try:
                self._memory.hold(self._held + count)
            except MemoryExceeded:
                self._freed.clear()
                try:
                    async with asyncio.timeout_at(until):
                        await self._freed.wait()
                except TimeoutError:
                    pass
                else:
                    continue
                raise
            self._held += count
            return

    def give_back(self, count: int) -> None:
        """Count bytes as held no longer."""
        if count:
            self._held -= count
            self._memory.hold(self._held)
            self._freed.set()
