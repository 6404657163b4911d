"""Versions of the weights: the current one, older ones that are still being read, and room for the next.

A step reads the current weights and writes the next ones into another set of buffers, which nobody reads; publishing
is one assignment. So a reader never waits for a step and never sees half of one. The number of sets is bounded: if all
of them are being read, the next step waits for a reader to finish.

Most readers hold a version only while it is sent to them. A worker that shares memory may read it in place for the
length of its computation, provided that enough other sets remain for steps.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import replace

from optd_server.store.extents import Extent
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.memory import SharedRegion, readable_by_workers
from optd_server.store.recent_changes import ChangedBySlab, ChangedElements, RecentChanges
from optd_server.store.versions import Snapshot, WeightSet


class Snapshots:
    """The sets of weights of one job. Lives on one event loop."""

    def __init__(self, first: Snapshot, *, most: int) -> None:
        self.current = first
        self.recent_changes = RecentChanges()
        self.shared = False
        self.wanted = False
        """Whether a step waits for readers to finish."""
        self._sets = [first.weights]
        self._mark_current(first.weights)
        self._most = most
        self._is_over = False
        """Whether the last step has been taken, so that nobody needs a set but those who read it."""
        self._released = asyncio.Event()
        self._closed: Exception | None = None

    # Readers

    def hold(self) -> Snapshot:
        """Return the current snapshot, whose weights stay unchanged until it is released.

        Raise the error that it was closed with once the memory of the job is freed.
        """
        if self._is_over and self._closed is not None:
            raise copy(self._closed)
        # Read once, because `share` may replace it from another thread.
        snapshot = self.current
        snapshot.weights.holders += 1
        return snapshot

    def release(self, snapshot: Snapshot) -> None:
        """End one hold."""
        snapshot.weights.holders -= 1
        self._released.set()
        if self._is_over:
            self._let_go()

    def settle(self, snapshot: Snapshot) -> bool:
        """Turn a hold into one in place, which may last as long as its reader likes; return whether it did.

        Steps alternate between two sets, so readers in place must leave two: otherwise it stays an ordinary hold.
        """
        taken = {id(weights) for weights in self._sets if weights.in_place} | {id(snapshot.weights)}
        if len(taken) > self._most - 2:
            return False
        snapshot.weights.in_place += 1
        return True

    def unsettle(self, snapshot: Snapshot) -> None:
        """Turn a hold in place back into an ordinary one."""
        snapshot.weights.in_place -= 1

    # Writers

    def share(self) -> WeightSet:
        """Keep weights in memory that workers of this host can map, from now on; return the current set.

        Copies the current weights there; a reader that holds the old set keeps it. Must not be called while a step
        runs. Raises `OSError` if there is no memory, and then changes nothing.
        """
        if not self.current.weights.shared:
            self.current = replace(self.current, weights=self._copied_to_shared(self.current.weights))
        self.shared = True
        return self.current.weights

    def _copied_to_shared(self, weights: WeightSet) -> WeightSet:
        copied = WeightSet(weights.buffers.extents, readable_by_workers)
        for target, source in zip(copied.buffers.all_slabs(), weights.buffers.all_slabs(), strict=True):
            target[:] = source
        copied.publications = list(weights.publications)
        self._sets.append(copied)
        return copied

    def placed(self, buffers: FlatBuffers) -> FlatBuffers:
        """Return a new group's weights, copied to shared memory if the current set is shared; raise `OSError`."""
        if not self.current.weights.shared:
            return buffers
        here = FlatBuffers(buffers.extents, readable_by_workers)
        for target, source in zip(here.all_slabs(), buffers.all_slabs(), strict=True):
            target[:] = source
        return here

    async def spare(self) -> WeightSet:
        """Return a set to write the next version into; wait while all sets are in use and no other may be made.

        Raises `OSError` if the system has no memory for it, or the error that `close` was given.
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
        current = self.current.weights
        free = [weights for weights in self._sets if weights is not current and weights.holders == 0]
        extents = current.buffers.extents
        for weights in free:
            if weights.shared == self.shared:
                if len(weights.buffers.extents) == len(extents):
                    return weights
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
            # If the process has no descriptors left, steps go on in private memory, and weights travel in messages.
            with suppress(OSError):
                return WeightSet(extents, readable_by_workers)
        return WeightSet(extents)

    def shared_regions(self) -> Iterator[SharedRegion]:
        """Yield the regions of all sets that lie in shared memory."""
        for weights in self._sets:
            yield from (region for region in weights.buffers.regions if isinstance(region, SharedRegion))

    def prepare(self) -> list[Array]:
        """Make the set that the next step will write to, unless there is one; return its slabs, to be touched.

        Returns no slabs if it made no set. If the system has no memory for one, the step will report that.
        """
        current = self.current.weights
        # Sets from before the weights were shared cannot be used again.
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
        """Raise `error` in whoever waits for a spare set."""
        self._closed = error
        self._released.set()

    def release_all(self) -> None:
        """Free the memory of a closed job: now, or for a set that is being read when its reader has finished."""
        self._is_over = True
        self._let_go()

    def _let_go(self) -> None:
        for weights in self._sets:
            if not weights.holders:
                weights.buffers.release()

    def lacks(self, weights: WeightSet, extent: int, slab: int) -> list[ChangedElements] | None:
        """Return the changes that a spare set lacks in a slab, or None if all of its elements may be out of date."""
        if extent >= len(weights.publications):
            return None
        return self.recent_changes.since(weights.publications[extent], extent, slab)

    def publish(self, snapshot: Snapshot, changes: ChangedBySlab | None = None) -> None:
        """Make `snapshot` the current one; `changes` says which weights a step changed."""
        if snapshot.weights is not self.current.weights:
            self.recent_changes.note(snapshot.version.version, changes, snapshot.weights.count_elements)
        self._mark_current(snapshot.weights)
        self.current = snapshot

    def _mark_current(self, weights: WeightSet) -> None:
        """Mark a set as holding the current weights."""
        weights.publications = [self.recent_changes.publication] * len(weights.buffers.extents)
