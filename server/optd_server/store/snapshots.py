"""Versions of the weights: the current one, older ones that are still being read, and room for the next.

A step reads the current weights and writes the next ones beside them, into a set of buffers that nobody reads;
publishing is one assignment. So a reader never waits for a step and never sees half of one. The number of sets is
bounded: when all of them are being read, the next step waits for a reader to finish.

Most readers hold a version while it is sent to them. A worker that shares memory may read it in place for as long as it
computes, as long as steps can go on beside it.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from optd_server.store.extents import Extent
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.journal import Change, Changes, Journal
from optd_server.store.memory import SharedRegion, published
from optd_server.store.versions import Snapshot, WeightSet


class Snapshots:
    """The sets of weights of one job. Lives on one event loop."""

    def __init__(self, first: Snapshot, *, most: int) -> None:
        self.current = first
        self.journal = Journal()
        self.shared = False
        self.wanted = False
        """Whether a writer waits for readers to finish."""
        self._sets = [first.weights]
        self._number(first.weights)
        self._most = most
        self._released = asyncio.Event()
        self._closed: Exception | None = None

    # Readers

    def hold(self) -> Snapshot:
        """The current snapshot; its weights stay as they are until it is released."""
        # Read once: `share` may replace it from another thread.
        snapshot = self.current
        snapshot.weights.holders += 1
        return snapshot

    def release(self, snapshot: Snapshot) -> None:
        """Ends one hold."""
        snapshot.weights.holders -= 1
        self._released.set()
        if self._closed is not None:
            self._let_go()

    def settle(self, snapshot: Snapshot) -> bool:
        """Makes a hold one in place, for as long as its reader likes; returns False where it has to stay short.

        Two sets must be left for steps to take turns in, whatever the readers in place do.
        """
        taken = {id(weights) for weights in self._sets if weights.in_place} | {id(snapshot.weights)}
        if len(taken) > self._most - 2:
            return False
        snapshot.weights.in_place += 1
        return True

    def unsettle(self, snapshot: Snapshot) -> None:
        """Makes a hold in place an ordinary one again."""
        snapshot.weights.in_place -= 1

    # Writers

    def share(self) -> WeightSet:
        """From now on weights lie in memory that workers of this host can map; copies the current ones there.

        Called while no step runs. Who holds a set that is not shared keeps it. Returns the current set. Raises
        `OSError`, and changes nothing then.
        """
        if not self.current.weights.shared:
            self.current = replace(self.current, weights=self._copied_to_shared(self.current.weights))
        self.shared = True
        return self.current.weights

    def _copied_to_shared(self, weights: WeightSet) -> WeightSet:
        copied = WeightSet(weights.buffers.extents, published)
        for target, source in zip(copied.buffers.all_slabs(), weights.buffers.all_slabs(), strict=True):
            target[:] = source
        copied.numbers = list(weights.numbers)
        self._sets.append(copied)
        return copied

    def placed(self, buffers: FlatBuffers) -> FlatBuffers:
        """The weights of a new group, in memory of the kind that the current set has; raises `OSError`."""
        if not self.current.weights.shared:
            return buffers
        here = FlatBuffers(buffers.extents, published)
        for target, source in zip(here.all_slabs(), buffers.all_slabs(), strict=True):
            target[:] = source
        return here

    async def spare(self) -> WeightSet:
        """A set to write the next version into; waits while the bound is reached and all others are being read.

        Raises `OSError` where the system has no memory for it.
        """
        while True:
            found = self._find_spare()
            if found is not None:
                return found
            self._released.clear()
            self.wanted = True
            try:
                await self._released.wait()
            finally:
                self.wanted = False
            if self._closed is not None:
                raise self._closed

    def _find_spare(self) -> WeightSet | None:
        free = [weights for weights in self._sets if weights is not self.current.weights and weights.holders == 0]
        extents = self.current.weights.buffers.extents
        for weights in free:
            if weights.shared == self.shared:
                with suppress(OSError):
                    weights.buffers.extend(extents)
                    return weights
            self._drop(weights)
        if len(self._sets) < self._most:
            weights = self._new_set(extents)
            self._sets.append(weights)
            return weights
        return None

    def _drop(self, weights: WeightSet) -> None:
        self._sets.remove(weights)
        weights.buffers.release()

    def _new_set(self, extents: Iterable[Extent]) -> WeightSet:
        if self.shared:
            # Without descriptors a step goes on all the same, and its weights go out in messages.
            with suppress(OSError):
                return WeightSet(extents, published)
        return WeightSet(extents)

    def shared_regions(self) -> Iterator[SharedRegion]:
        """The regions of all sets that lie in shared memory."""
        for weights in self._sets:
            yield from (region for region in weights.buffers.regions if isinstance(region, SharedRegion))

    def prepare(self) -> list[Array]:
        """Makes the set that the next step is going to write to, where there is none; its slabs, to be touched.

        Makes none where the system has no memory for it: the step finds that out.
        """
        current = self.current.weights
        # Those of before the weights were shared are of no use any more.
        for weights in [w for w in self._sets if w is not current and not w.holders and w.shared != self.shared]:
            self._drop(weights)
        if any(weights is not current and weights.shared == self.shared for weights in self._sets):
            return []
        if len(self._sets) == self._most:
            return []
        try:
            self._sets.append(self._new_set(self.current.weights.buffers.extents))
        except OSError:
            return []
        return list(self._sets[-1].buffers.all_slabs())

    def close(self, error: Exception) -> None:
        """Whoever waits for a spare set gets `error` instead."""
        self._closed = error
        self._released.set()

    def release_all(self) -> None:
        """Lets go of the memory of a job that is closed: now, or of what is being read when its reader has finished."""
        self._let_go()

    def _let_go(self) -> None:
        for weights in self._sets:
            if not weights.holders:
                weights.buffers.release()

    def lacks(self, weights: WeightSet, extent: int, slab: int) -> list[Change] | None:
        """What a spare set lacks of the current weights of a slab; None where that may be everything."""
        if extent >= len(weights.numbers):
            return None
        return self.journal.since(weights.numbers[extent], extent, slab)

    def publish(self, snapshot: Snapshot, changes: Changes | None = None) -> None:
        """Makes `snapshot` the current one; `changes` tells what a step has changed in its weights."""
        if snapshot.weights is not self.current.weights:
            elements = sum(slab.size for slab in snapshot.weights.buffers.all_slabs())
            self.journal.note(snapshot.version.version, changes, elements)
        self._number(snapshot.weights)
        self.current = snapshot

    def _number(self, weights: WeightSet) -> None:
        """Says that a set holds the current weights."""
        weights.numbers = [self.journal.number] * len(weights.buffers.extents)
