"""Prefaults memory that the first step of a large job would otherwise wait for."""

import asyncio
import logging

from optd_server.engine.offload import Offload
from optd_server.engine.planning import JobMemory
from optd_server.engine.state import JobState
from optd_server.store.flat import Array
from optd_server.store.gradients import Slots
from optd_server.store.snapshots import Snapshots

logger = logging.getLogger(__name__)

TOUCHED_BYTES = 16 << 20
"""Jobs with a smaller plan are not prefaulted: page faults cost their first step next to nothing."""


class Touching:
    """Prefaults the memory of one job ahead of its first step."""

    def __init__(
        self, state: JobState, snapshots: Snapshots, slots: Slots, memory: JobMemory, offload: Offload
    ) -> None:
        self._state = state
        self._snapshots = snapshots
        self._slots = slots
        self._memory = memory
        self._offload = offload
        self._task: asyncio.Task[None] | None = None
        self._untouched: list[Array] = []
        self.prepare_state()

    @property
    def is_large(self) -> bool:
        """Whether the job is large enough for prefaulting to pay."""
        return self._memory.bytes >= TOUCHED_BYTES

    def prepare_state(self) -> None:
        """Allocates the state that the next step needs, for `touch_state`. Called while no step runs."""
        self._untouched = self._state.groups.prepare_state() if self.is_large else []

    async def touch_state(self) -> None:
        """Prefaults the state that the first step needs."""
        arrays, self._untouched = self._untouched, []
        await self._offload.touch(arrays)

    def begin_for_messages(self) -> None:
        """Starts prefaulting for a first step whose gradients come in messages, unless a step has been taken.

        This runs in the background while a worker computes its first gradient. Opening shared memory cancels it.
        """
        if self._state.version or not self.is_large or self._snapshots.shared or self._task is not None:
            return
        arrays = self._snapshots.prepare()
        slot = self._slots.prepare()
        if slot is not None:
            try:
                slot.fit(self._state.groups.extents)
            except OSError as problem:  # the push will report it
                logger.info("no memory for the first gradient of job %s yet: %s", self._state.name, problem)
        arrays += [] if slot is None else slot.buffers.all_slabs()
        self._task = asyncio.get_running_loop().create_task(self._offload.touch(arrays))

    async def wait_for_messages(self) -> None:
        """Waits for the prefaulting that `begin_for_messages` started, if it did."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def end(self) -> None:
        """Cancels prefaulting that is under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
