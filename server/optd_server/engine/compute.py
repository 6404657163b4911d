"""The resources that `apply` computes with: kernels, threads, and the memory that a step writes to."""

from collections.abc import Callable
from dataclasses import dataclass

from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.store.flat import FlatBuffers
from optd_server.store.recent_changes import ChangedElements
from optd_server.store.versions import WeightSet

INLINE_ELEMENTS = 32 * 1024
"""One kernel takes about 100 microseconds for this many elements: as long as handing work to a thread and back."""


@dataclass(slots=True)
class Compute:
    """The resources of one `apply`. The bits of its results depend on none of them."""

    kernels: Backend = BLOCKED
    threads: int = 1
    into: WeightSet | None = None
    """The spare set that receives the next weights; None: newly allocated memory."""
    lacks: Callable[[int, int], list[ChangedElements] | None] | None = None
    """Maps extent and slab to the current elements that `into` lacks. None, also as a result: perhaps all of them."""
    copies: list[FlatBuffers] | None = None
    """Copies of an added group's weights, one for each average; None: `apply` makes them."""
