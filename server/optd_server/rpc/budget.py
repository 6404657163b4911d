"""Limit the bytes of requests that the server holds at the same time."""

import asyncio

from optd_wire.errors import TooManyBytes


class ByteBudget:
    """Counts the bytes of messages that have been received and not yet processed.

    A message that does not fit waits, and nothing more is read from its sender meanwhile: backpressure. If it waits too
    long, its call fails. Lives on one event loop.
    """

    def __init__(self, limit: int, patience_seconds: float) -> None:
        self._limit = limit
        self._patience = patience_seconds
        self._held = 0
        self._freed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Count `count` bytes as held, after waiting for room; raise `TooManyBytes` if that takes too long."""
        # A message that is alone always fits, because `max_message_bytes` is the smaller limit.
        while self._held and self._held + count > self._limit:
            self._freed.clear()
            try:
                async with asyncio.timeout(self._patience):
                    await self._freed.wait()
            except TimeoutError:
                raise TooManyBytes(limit=self._limit, seconds=f"{self._patience:g}") from None
        self._held += count

    def give_back(self, count: int) -> None:
        """Count `count` bytes as held no longer."""
        self._held -= count
        self._freed.set()
