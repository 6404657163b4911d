"""Gradients on their way into a step: a bounded number of slots, each as large as the job's weights."""

import asyncio
from collections import deque
from collections.abc import Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.frames import Frame
from optd_wire.layout import GroupLayout
from optd_wire.values import GRADIENT

Presence = list[list[npt.NDArray[np.bool_]]]


class GradientSlot:
    """Room for one gradient of the whole job, and which parameters have one in it."""

    def __init__(self, layouts: Sequence[GroupLayout], groups: Sequence[str]) -> None:
        self.buffers = FlatBuffers(layouts)
        self._sink = FrameSink(self.buffers, GRADIENT, groups)
        self.presence: Presence = []

    def reset(self, layouts: Sequence[GroupLayout], groups: Sequence[str]) -> None:
        """Makes the slot empty, with room for all of `layouts`."""
        self.buffers.extend(layouts)
        self._sink = FrameSink(self.buffers, GRADIENT, groups)
        self.presence = []

    def write(self, frames: Sequence[Frame]) -> None:
        """Copies frames in; raises what `FrameSink.write` raises."""
        self._sink.write_all(frames)

    def seal(self) -> None:
        """Fixes `presence` once all frames are in; raises `IncompleteParameter`."""
        self.presence = self._sink.presence()

    def pad(self, layouts: Sequence[GroupLayout]) -> None:
        """Makes room for groups that were added after the push was sent; it has no gradient for them."""
        self.buffers.extend(layouts)
        for layout in layouts[len(self.presence) :]:
            self.presence.append([np.zeros(len(segment.members), np.bool_) for segment in layout.segments])


class GradientSlots:
    """The slots of one job, handed out in the order of asking. Lives on one event loop."""

    def __init__(self, *, most: int) -> None:
        self._free: list[GradientSlot] = []
        self._made = 0
        self._most = most
        self._closed: Exception | None = None
        self._waiting: deque[asyncio.Future[GradientSlot]] = deque()

    async def take(self, layouts: Sequence[GroupLayout], groups: Sequence[str]) -> GradientSlot:
        """An empty slot; waits while all are in use."""
        if self._closed is not None:
            raise copy(self._closed)
        if self._free:
            slot = self._free.pop()
        elif self._made < self._most:
            self._made += 1
            return GradientSlot(layouts, groups)
        else:
            slot = await self._wait()
        slot.reset(layouts, groups)
        return slot

    def close(self, error: Exception) -> None:
        """Whoever waits for a slot, now or later, gets `error` instead."""
        self._closed = error
        for future in self._waiting:
            if not future.done():
                future.set_exception(copy(error))

    async def _wait(self) -> GradientSlot:
        future: asyncio.Future[GradientSlot] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            # The slot may have been handed over in the moment of the cancellation.
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result())
            raise

    def give_back(self, slot: GradientSlot) -> None:
        """Returns a slot; the one who has waited longest gets it."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(slot)
                return
        self._free.append(slot)
