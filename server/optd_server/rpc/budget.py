"""How many bytes of requests the server holds at the same time."""

import asyncio

from optd_wire.errors import TooManyBytes


class ByteBudget:
    """Counts the messages that have been received and not yet been dealt with.

    A message that does not fit waits, and while it waits its sender is not read any further: backpressure. One that
    waits too long ends its call. Lives on one event loop.
    """

    def __init__(self, limit: int, patience_seconds: float) -> None:
        self._limit = limit
        self._patience = patience_seconds
        self._held = 0
        self._freed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Counts `count` bytes as held; raises `TooManyBytes` where there is no room for too long."""
        # A message alone always fits: the limit on messages is the smaller one.
        while self._held and self._held + count > self._limit:
            self._freed.clear()
            try:
                async with asyncio.timeout(self._patience):
                    await self._freed.wait()
            except TimeoutError:
                raise TooManyBytes(limit=self._limit, seconds=f"{self._patience:g}") from None
        self._held += count

    def give_back(self, count: int) -> None:
        """Ends the hold of `count` bytes."""
        self._held -= count
        self._freed.set()
