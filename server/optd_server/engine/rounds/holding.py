"""The memory of pushes that are held: gradients that have been received and wait for their round."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from optd_server.engine.memory import FRAME_BYTES
from optd_server.engine.planning import JobMemory
from optd_server.engine.rounds.digest import size_of
from optd_wire.errors import MemoryExceeded, TooManyBytes
from optd_wire.frames import Frame, Received

PATIENCE_SECONDS = 30.0
"""How long a push waits for memory. Nothing more is read from its sender meanwhile."""
LOOKS_SECONDS = 0.5
"""How often it looks whether somebody else has freed memory."""

_Line: TypeAlias = deque[tuple[int, asyncio.Future[None]]]


class Holding:
    """Counts the bytes that the pushes of one job hold. Lives on one event loop.

    Room is given in the order of arrival, so that a large message is not passed by small ones for ever. Only pushes
    that hold something already come before those that do not: their round needs the rest, and frees what they hold.
    """

    def __init__(self, memory: JobMemory) -> None:
        self._memory = memory
        self._held = 0
        self._begun: _Line = deque()
        """The messages that wait, of pushes that hold something."""
        self._new: _Line = deque()
        """The first messages that wait."""

    async def take(self, count: int, *, has_begun: bool = False) -> None:
        """Count bytes as held, after waiting for room; raise `TooManyBytes` if that takes too long.

        `has_begun` says whether they are of a push that holds something already.
        """
        if not self._begun and (has_begun or not self._new) and self._try(count):
            return
        if not self._begun and not self._new:
            self._memory.tell_short(self._held)
        line = self._begun if has_begun else self._new
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append((count, room))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not room.done():
                    await asyncio.wait([room], timeout=LOOKS_SECONDS)
                    self._admit()
        except BaseException as problem:
            if room.done():
                self.give_back(count)  # the room came at the moment at which the wait ended
            else:
                line.remove((count, room))
                self._admit()  # those behind may be smaller
            if isinstance(problem, TimeoutError):
                raise self._refusal() from None
            raise

    def _admit(self) -> None:
        for line in (self._begun, self._new):
            while line:
                count, room = line[0]
                if not self._try(count):
                    return
                line.popleft()
                room.set_result(None)

    def _try(self, count: int) -> bool:
        try:
            self._memory.hold(self._held + count)
        except MemoryExceeded:
            return False
        self._held += count
        return True

    def could_hold(self, count: int) -> bool:
        """Whether the job may hold so many bytes, if it holds nothing else."""
        return self._memory.could_hold(count)

    def give_back(self, count: int) -> None:
        """Count bytes as held no longer."""
        if count:
            self._held -= count
            self._memory.let_go(self._held)
            self._admit()

    def _refusal(self) -> TooManyBytes:
        return TooManyBytes(
            limit=self._memory.limit,
            whose="the server's memory",
            seconds=f"{PATIENCE_SECONDS:g}",
            setting="--max-memory-bytes",
        )


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
