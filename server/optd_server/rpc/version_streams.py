"""How often streams of versions send: seldom enough that any number of readers leaves the server free for steps."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST_SECONDS = 0.005
"""The shortest time between two messages of a stream."""
SECONDS_A_STREAM = 0.001
"""The time between two messages grows by this with each stream: all of them together send about 1000 a second."""


class VersionStreams:
    """The open streams of versions of a server."""

    def __init__(self) -> None:
        self.open = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Count one stream while the block runs."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def pause(self) -> None:
        """Sleep until a stream that has just sent a message may send the next one."""
        await asyncio.sleep(max(SHORTEST_SECONDS, self.open * SECONDS_A_STREAM))
