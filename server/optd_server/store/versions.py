"""One version of a job's weights, as plain values: the numbers, and what readers see beside them.

Steps and recovery work on these without an event loop. Who takes turns with them is in `snapshots`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.memory import Allocate, Region, SharedRegion, published
from optd_wire.layout import GroupLayout
from optd_wire.values import GroupOptions, GroupSummary, JobVersion, Options

StepRanges = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class WeightSet:
    """The weights of a whole job at one version, and how many readers hold them: for a moment, or in place."""

    def __init__(self, extents: Iterable[Extent], allocate: Allocate = Region) -> None:
        self.buffers = FlatBuffers(extents, allocate)
        self.holders = 0
        self.in_place = 0
        self.numbers: list[int] = []
        """By extent, which of the job's weights lie in it: see `Journal`. Empty while it holds none."""
        self.shared = allocate is published
        """Whether workers of this host can map it."""

    @classmethod
    def holding(cls, buffers: FlatBuffers) -> "WeightSet":
        """A set of weights that are there already; takes the buffers over."""
        made = cls(())
        made.buffers = buffers
        return made

    def region_numbers(self) -> tuple[int, ...]:
        """The numbers of its regions, by extent."""
        return tuple(region.number for region in self.buffers.regions if isinstance(region, SharedRegion))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The immutable state of all groups at one version and revision."""

    version: JobVersion
    layouts: tuple[GroupLayout, ...]
    options: tuple[GroupOptions, ...]
    weights: WeightSet
    steps: StepRanges
    """By group, the fewest and the most steps that a parameter of it has had."""
    effective: tuple[Options, ...]
    """By group, the options of the step that follows, where schedules make these other ones."""

    def summary(self, index: int) -> GroupSummary:
        """One line about a group."""
        layout = self.layouts[index]
        fewest, most = self.steps
        return GroupSummary(
            index=index,
            options=self.options[index],
            parameters=len(layout.parameters),
            elements=layout.count,
            dtypes=tuple(segment.dtype for segment in layout.segments),
            min_steps=int(fewest[index]),
            max_steps=int(most[index]),
            effective=changed_options(self.options[index].options, self.effective[index]),
        )

    def summaries(self) -> tuple[GroupSummary, ...]:
        """A line about each group."""
        return tuple(self.summary(index) for index in range(len(self.layouts)))

    def arrays(self, group: int) -> list[Array]:
        """The weights of a group, an array a segment; read only by convention, valid while held."""
        return self.weights.buffers.arrays[group]


def changed_options(options: Options, effective: Options) -> Options:
    """What differs in effective options from those that a group was told."""
    return {} if effective is options else {n: v for n, v in effective.items() if v != options.get(n)}
