"""What arithmetic is done with: kernels and threads, and the memory that a step writes to."""

from collections.abc import Callable
from dataclasses import dataclass

from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.store.flat import FlatBuffers
from optd_server.store.recent_changes import ChangedElements
from optd_server.store.versions import WeightSet

INLINE_ELEMENTS = 32 * 1024
"""So many elements take one kernel about 100 microseconds, which is what handing over to a thread and back costs."""


@dataclass(slots=True)
class Compute:
    """What `apply` computes with. The bits of its results depend on none of this."""

    kernels: Backend = BLOCKED
    threads: int = 1
    into: WeightSet | None = None
    """Where an event that replaces the weights writes the next ones; None: to new memory."""
    lacks: Callable[[int, int], list[ChangedElements] | None] | None = None
    """By extent and slab, what `into` lacks of the current weights; None, or a result of None: perhaps everything."""
    copies: list[FlatBuffers] | None = None
    """Memory for the averages of a group that is added, with its weights in it; None: `apply` makes it."""
