"""Versions of the weights: the current one, older ones that are still being read, and room for the next.

A step reads the current weights and writes the next ones beside them, into a set of buffers that nobody reads;
publishing is one assignment. So a reader never waits for a step and never sees half of one. The number of sets is
bounded: when all of them are being read, the next step waits for a reader to finish.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from optd_server.store.flat import Array, FlatBuffers
from optd_wire.layout import GroupLayout
from optd_wire.values import GroupOptions, GroupSummary, JobVersion


class WeightSet:
    """The weights of a whole job at one version, and how many readers hold them."""

    def __init__(self, layouts: Sequence[GroupLayout]) -> None:
        self.buffers = FlatBuffers(layouts)
        self.holders = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The immutable state of all groups at one version and revision."""

    version: JobVersion
    layouts: tuple[GroupLayout, ...]
    options: tuple[GroupOptions, ...]
    weights: WeightSet
    steps: tuple[tuple[int, int], ...] = ()
    """By group, the fewest and the most steps that a parameter of it has had."""

    def summary(self, index: int) -> GroupSummary:
        """One line about a group."""
        layout = self.layouts[index]
        fewest, most = self.steps[index]
        return GroupSummary(
            index=index,
            options=self.options[index],
            parameters=len(layout.parameters),
            elements=layout.count,
            dtypes=tuple(segment.dtype for segment in layout.segments),
            min_steps=fewest,
            max_steps=most,
        )

    def summaries(self) -> tuple[GroupSummary, ...]:
        """A line about each group."""
        return tuple(self.summary(index) for index in range(len(self.layouts)))

    def arrays(self, group: int) -> list[Array]:
        """The weights of a group, an array a segment; read only by convention, valid while held."""
        return self.weights.buffers.arrays[group]


class Snapshots:
    """The sets of weights of one job. Lives on one event loop."""

    def __init__(self, first: Snapshot, *, most: int) -> None:
        self.current = first
        self._sets = [first.weights]
        self._most = most
        self._released = asyncio.Event()
        self._closed: Exception | None = None

    def hold(self) -> Snapshot:
        """The current snapshot; its weights stay as they are until it is released."""
        self.current.weights.holders += 1
        return self.current

    def release(self, snapshot: Snapshot) -> None:
        """Ends one hold."""
        snapshot.weights.holders -= 1
        self._released.set()

    async def spare(self) -> WeightSet:
        """A set to write the next version into; waits while the bound is reached and all others are being read."""
        while True:
            for weights in self._sets:
                if weights is not self.current.weights and weights.holders == 0:
                    weights.buffers.extend(self.current.layouts)
                    return weights
            if len(self._sets) < self._most:
                weights = WeightSet(self.current.layouts)
                self._sets.append(weights)
                return weights
            self._released.clear()
            await self._released.wait()
            if self._closed is not None:
                raise self._closed

    def close(self, error: Exception) -> None:
        """Whoever waits for a spare set gets `error` instead."""
        self._closed = error
        self._released.set()

    def publish(self, snapshot: Snapshot) -> None:
        """Makes `snapshot` the current one."""
        self.current = snapshot
