"""Which parameters of a slot are ready to be added to: a parameter is cleared when it is first needed, not before."""

from collections.abc import Sequence

import numpy as np

from optd_server.store.extents import Extent
from optd_server.store.flat import FlatBuffers
from optd_server.store.ledger import Mask


class Clearing:
    """The parameters of a slot that have been cleared for a round.

    Threads may ask for different parameters at the same time.
    """

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = tuple(extents)
        self._done = [[np.zeros(len(slab.sizes), np.bool_) for slab in extent.slabs] for extent in extents]

    def prepare(self, buffers: FlatBuffers, extent: int, slab: int, start: int, stop: int) -> None:
        """Clears the parameters that the elements from `start` to before `stop` of a slab belong to, whole."""
        layout, done = self._extents[extent].slabs[slab], self._done[extent][slab]
        first = int(np.searchsorted(layout.starts + layout.sizes, start, side="right"))
        last = int(np.searchsorted(layout.starts, stop, side="left"))
        waiting: Mask = ~done[first:last]
        for number in (first + np.flatnonzero(waiting)).tolist():
            begin = int(layout.starts[number])
            # What leaves every number as it is that is added to it.
            buffers.slabs[extent][slab][begin : begin + int(layout.sizes[number])] = -0.0
        done[first:last] = True
