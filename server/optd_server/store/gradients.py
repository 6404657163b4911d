"""Gradients on their way into a step: room for a whole gradient of a job, of which there is a bounded number."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent, computed
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.ledger import Presence
from optd_server.store.rows import Rows

Totals = list[list[npt.NDArray[np.float64]]]
"""By extent and slab, shape (P,): the sum of the weights of the pushes that have each parameter."""


@dataclass(slots=True)
class Gradient:
    """A gradient of the whole job: by extent and slab its numbers, and which parameters have some.

    Parameters of `rows` are none of these: they have numbers for some rows only, which lie elsewhere.
    """

    slabs: list[list[Array]]
    presence: Presence
    rows: tuple[Rows, ...] = ()

    def cover(self, extents: Sequence[Extent]) -> None:
        """Says that there is nothing for groups that were added after it was computed."""
        for extent in extents[len(self.presence) :]:
            self.presence.append([np.zeros(len(slab.sizes), np.bool_) for slab in extent.slabs])

    def has(self, extent: int, slab: int, parameter: int) -> bool:
        """Whether a parameter of a slab has a gradient."""
        return extent < len(self.presence) and bool(self.presence[extent][slab][parameter])


@dataclass(eq=False, slots=True)
class Slot:
    """Room for one gradient."""

    buffers: FlatBuffers = field(default_factory=lambda: FlatBuffers(()))

    def fit(self, extents: Iterable[Extent]) -> None:
        """Makes room for all of `extents`."""
        self.buffers.extend(computed(extents))

    def holding(self, presence: Presence, rows: tuple[Rows, ...] = ()) -> Gradient:
        """The gradient that lies here, and rows of other parameters."""
        return Gradient(self.buffers.slabs, presence, rows)


class Slots:
    """The slots of one job, handed out in the order of asking. Lives on one event loop.

    The gradient of the last step stays readable in its slot until the slot is needed.
    """

    def __init__(self, *, most: int) -> None:
        self._free: list[Slot] = []
        self._made = 0
        self._most = most
        self._waiting: deque[Callable[[Slot], None]] = deque()
        self._kept: tuple[Slot, Gradient] | None = None
        self._readers = 0
        self._closed = False

    def allow(self, most: int) -> None:
        """Changes how many slots there may be; those that are too many go when they are given back."""
        self._most = most
        self._shrink()
        self._serve()

    def _shrink(self) -> None:
        while self._made > self._most and self._free:
            self._free.pop().buffers.release()
            self._made -= 1

    def prepare(self) -> Slot | None:
        """A slot that nobody has asked for yet, which the next one to ask gets; None where there has been one."""
        if self._made or not self._most:
            return None
        self._made += 1
        slot = Slot()
        self._free.append(slot)
        return slot

    def release_all(self) -> None:
        """Lets go of the memory of a job that is closed: now, or when a slot is given back."""
        self._closed = True
        self._waiting.clear()
        if self._kept is not None:
            self._free.append(self._kept[0])
            self._kept = None
        for slot in self._free:
            slot.buffers.release()

    @property
    def last(self) -> Gradient | None:
        """The gradient of the last step, where it is still there."""
        return None if self._kept is None else self._kept[1]

    def take(self, start: Callable[[Slot], None]) -> None:
        """Calls `start` with a slot: now, or when one is free."""
        self._waiting.append(start)
        self._serve()

    def give_back(self, slot: Slot) -> None:
        """Returns a slot."""
        if self._closed:
            slot.buffers.release()
        self._free.append(slot)
        self._shrink()
        self._serve()

    def keep(self, slot: Slot, gradient: Gradient) -> None:
        """Returns a slot with the gradient of the last step in it."""
        if self._kept is not None:
            self._free.append(self._kept[0])
        self._kept = (slot, gradient)
        self._shrink()
        self._serve()

    def forget(self) -> None:
        """Drops the gradient of the last step: another step has followed, of which none is kept."""
        if self._kept is not None and not self._readers:
            self._free.append(self._kept[0])
            self._kept = None
            self._shrink()
            self._serve()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Leaves the last gradient where it is while the block runs."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._serve()

    def _serve(self) -> None:
        while self._waiting:
            slot = self._find()
            if slot is None:
                return
            self._waiting.popleft()(slot)

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
