"""Gradients on their way into a step, and the bounded number of slots that hold one gradient of a job each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent, in_compute_dtype
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.ledger import Presence, is_present
from optd_server.store.rows import Rows

Totals = list[list[npt.NDArray[np.float64]]]
"""Indexed by extent, then by slab. For each parameter, the total weight of the pushes that have it; shape (P,)."""


@dataclass(slots=True)
class Gradient:
    """A gradient of the whole job."""

    slabs: list[list[Array]]
    """Its numbers, indexed by extent, then by slab."""
    presence: Presence
    """Which parameters have numbers in `slabs`."""
    rows: tuple[Rows, ...] = ()
    """Row-sparse gradients of other parameters, which do not count as present."""

    def cover(self, extents: Sequence[Extent]) -> None:
        """Mark the groups that were added after it was computed as absent."""
        for extent in extents[len(self.presence) :]:
            self.presence.append([np.zeros(len(slab.sizes), np.bool_) for slab in extent.slabs])

    def has(self, extent: int, slab: int, parameter: int) -> bool:
        """Return whether a parameter of a slab has a gradient."""
        return is_present(self.presence, extent, slab, parameter)


@dataclass(eq=False, slots=True)
class Slot:
    """The buffers that one gradient is collected in."""

    buffers: FlatBuffers = field(default_factory=lambda: FlatBuffers(()))

    def fit(self, extents: Iterable[Extent]) -> None:
        """Allocate memory for those of `extents` that it does not have yet; raise `OSError` if there is none."""
        self.buffers.extend(in_compute_dtype(extents))

    def holding(self, presence: Presence, rows: tuple[Rows, ...] = ()) -> Gradient:
        """Return what lies here as a gradient, together with the row-sparse gradients of other parameters."""
        return Gradient(self.buffers.slabs, presence, rows)


class Slots:
    """The slots of one job, handed out first come, first served. Lives on one event loop.

    The gradient of the last step stays readable in its slot until that slot is needed.
    """

    def __init__(self, *, most: int) -> None:
        self._free: list[Slot] = []
        self._made = 0
        self._most = most
        self._waiting: dict[Callable[[Slot], None], None] = {}
        """An ordered set: a request can be withdrawn from its middle."""
        self._is_serving = False
        self._kept: tuple[Slot, Gradient] | None = None
        self._readers = 0
        self._closed = False

    def allow(self, most: int) -> None:
        """Change the number of slots; surplus slots are dropped as they are given back."""
        self._most = most
        self._shrink()
        self._serve()

    def _shrink(self) -> None:
        while self._made > self._most and self._free:
            self._free.pop().buffers.release()
            self._made -= 1

    def prepare(self) -> Slot | None:
        """Create the first slot in advance and return it; return None if a slot was ever created.

        The slot remains free: whoever calls `take` next gets it.
        """
        if self._made or not self._most:
            return None
        self._made += 1
        slot = Slot()
        self._free.append(slot)
        return slot

    def release_all(self) -> None:
        """Free the memory of a closed job: now, or for slots in use when they are given back."""
        self._closed = True
        self._waiting.clear()
        if self._kept is not None:
            self._free.append(self._kept[0])
            self._kept = None
        for slot in self._free:
            slot.buffers.release()

    @property
    def last(self) -> Gradient | None:
        """The gradient of the last step, or None if its slot has been reused."""
        return None if self._kept is None else self._kept[1]

    def take(self, start: Callable[[Slot], None]) -> bool:
        """Call `start` with a slot: at once, or as soon as one is free; return whether it has been called."""
        self._waiting[start] = None
        self._serve()
        return start not in self._waiting

    def withdraw(self, start: Callable[[Slot], None]) -> None:
        """Forget a request that no longer needs its slot."""
        del self._waiting[start]

    def give_back(self, slot: Slot) -> None:
        """Give a slot back."""
        if self._closed:
            slot.buffers.release()
        self._free.append(slot)
        self._shrink()
        self._serve()

    def keep(self, slot: Slot, gradient: Gradient) -> None:
        """Give a slot back that holds the gradient of the last step."""
        if self._kept is not None:
            self._free.append(self._kept[0])
        self._kept = (slot, gradient)
        self._shrink()
        self._serve()

    def forget(self) -> None:
        """Drop the kept gradient unless it is being read: a later step has kept none."""
        if self._kept is not None and not self._readers:
            self._free.append(self._kept[0])
            self._kept = None
            self._shrink()
            self._serve()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the slot of the last gradient from being reused while the block runs."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._serve()

    def _serve(self) -> None:
        if self._is_serving:
            return  # called by a request that is being served: the loop below goes on with what was given back
        self._is_serving = True
        try:
            while self._waiting:
                slot = self._find()
                if slot is None:
                    return
                start = next(iter(self._waiting))
                del self._waiting[start]
                start(slot)
        finally:
            self._is_serving = False

    def _find(self) -> Slot | None:
        if self._free:
            return self._free.pop()
        if self._made < self._most:
            self._made += 1
            return Slot()
        if self._kept is not None and not self._readers:
            slot, self._kept = self._kept[0], None
            return slot
        return None
