"""The memory of pushes that are held: gradients that have been received and wait for their round."""

import asyncio
from collections.abc import Iterable

from optd_server.engine.memory import FRAME_BYTES
from optd_server.engine.planning import JobMemory
from optd_server.engine.rounds.digest import size_of
from optd_wire.errors import MemoryExceeded, TooManyBytes
from optd_wire.frames import Frame, Received

PATIENCE_SECONDS = 30.0
"""How long a push waits for memory. Nothing more is read from its sender meanwhile."""
LOOKS_SECONDS = 0.5
"""How often it looks whether somebody else has freed memory."""


class Holding:
    """Counts the bytes that the pushes of one job hold. Lives on one event loop."""

    def __init__(self, memory: JobMemory) -> None:
        self._memory = memory
        self._held = 0
        self._freed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Count bytes as held, after waiting for room; raise `TooManyBytes` if that takes too long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_SECONDS
        while not self._try(count):
            if loop.time() >= until:
                raise TooManyBytes(
                    limit=self._memory.limit,
                    whose="the server's memory",
                    seconds=f"{PATIENCE_SECONDS:g}",
                    setting="--max-memory-bytes",
                )
            self._freed.clear()
            await asyncio.wait(
                [wait := asyncio.ensure_future(self._freed.wait())], timeout=min(LOOKS_SECONDS, PATIENCE_SECONDS)
            )
            wait.cancel()

    def _try(self, count: int) -> bool:
        try:
            self._memory.hold(self._held + count)
        except MemoryExceeded:
            return False
        self._held += count
        return True

    def give_back(self, count: int) -> None:
        """Count bytes as held no longer."""
        if count:
            self._held -= count
            self._memory.let_go(self._held)
            self._freed.set()


def kept_bytes(frames: Iterable[Received]) -> int:
    """Return the bytes of memory that received frames of one message take while they are kept.

    A decoded frame is a view into its message, so it keeps all of the message, also what is not numbers. Every frame
    has a fixed cost, even an empty one, which is not kept: the place that it addresses is remembered.
    """
    total, messages = 0, {}
    for frame in frames:
        total += FRAME_BYTES
        payload = frame.payload
        if isinstance(payload, memoryview) and isinstance(payload.obj, bytes):
            if frame.count:
                messages[id(payload.obj)] = len(payload.obj)
        else:
            total += size_of(frame) + (0 if isinstance(frame, Frame) else frame.ids.nbytes)
    return total + sum(messages.values())
