"""Memory that the first step of a large job would wait for, had from the system before that."""

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
"""A job that is planned with less finds its memory in no time."""


class Touching:
    """Has the system give memory to one job ahead of its first step."""

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
        """Whether it is worth while."""
        return self._memory.bytes >= TOUCHED_BYTES

    def prepare_state(self) -> None:
        """Notes the state that the next step is going to need. Called while no step runs."""
        self._untouched = self._state.groups.prepare_state() if self.is_large else []

    async def touch_state(self) -> None:
        """Has the state of the first step get its memory now."""
        arrays, self._untouched = self._untouched, []
        await self._offload.touch(arrays)

    def begin_for_messages(self) -> None:
        """Begins to get memory for a first step whose numbers come in messages, unless there has been a step.

        In the background: a worker computes its first gradient meanwhile, or opens shared memory, which cancels this.
        """
        if self._state.version or not self.is_large or self._snapshots.shared or self._task is not None:
            return
        arrays = self._snapshots.prepare()
        slot = self._slots.prepare()
        if slot is not None:
            try:
                slot.fit(self._state.groups.extents)
            except OSError as problem:  # the push finds it out, too
                logger.info("no memory for the first gradient of job %s yet: %s", self._state.name, problem)
        arrays += [] if slot is None else slot.buffers.all_slabs()
        self._task = asyncio.get_running_loop().create_task(self._offload.touch(arrays))

    async def wait_for_messages(self) -> None:
        """Waits until a first step whose numbers come in messages finds its memory, if that has begun."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def end(self) -> None:
        """Ends what has begun."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
