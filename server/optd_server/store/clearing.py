"""Clear the parameters of a slot one by one, each when a gradient is first added to it."""

from collections.abc import Sequence

import numpy as np

from optd_server.store.extents import Extent
from optd_server.store.flat import FlatBuffers
from optd_server.store.ledger import Mask


class Clearing:
    """The parameters of a slot that have been cleared for the current round.

    Several threads may use it at the same time, for different parameters.
    """

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = tuple(extents)
        self._done = [[np.zeros(len(slab.sizes), np.bool_) for slab in extent.slabs] for extent in extents]

    def prepare(self, buffers: FlatBuffers, extent: int, slab: int, start: int, stop: int) -> None:
        """Clear, as a whole, each parameter that has elements in `[start, stop)` of a slab and is not cleared yet."""
        layout, done = self._extents[extent].slabs[slab], self._done[extent][slab]
        first = int(np.searchsorted(layout.starts + layout.sizes, start, side="right"))
        last = int(np.searchsorted(layout.starts, stop, side="left"))
        waiting: Mask = ~done[first:last]
        for number in (first + np.flatnonzero(waiting)).tolist():
            begin = int(layout.starts[number])
            # Not 0.0, because 0.0 + -0.0 is 0.0: a gradient of -0.0 would lose its sign.
            buffers.slabs[extent][slab][begin : begin + int(layout.sizes[number])] = -0.0
        done[first:last] = True
