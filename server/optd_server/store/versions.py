"""One version of a job's weights, as plain values: the numbers, and what readers see beside them.

Steps and recovery work on these without an event loop. Who takes turns with them is in `snapshots`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optd_server.store.extents import Extent
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.memory import Allocate, Region, SharedRegion, readable_by_workers
from optd_wire.layout import GroupLayout
from optd_wire.values import GroupInfo, GroupOptions, GroupSummary, JobOptions, JobVersion, Options

StepRanges = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

NO_OPTIONS = JobOptions({})


class WeightSet:
    """The weights of a whole job at one version, and the number of readers that hold them: in all, and in place."""

    def __init__(self, extents: Iterable[Extent], allocate: Allocate = Region) -> None:
        self.buffers = FlatBuffers(extents, allocate)
        self.holders = 0
        self.in_place = 0
        self.publications: list[int] = []
        """By extent, the publication of the weights in it: see `RecentChanges`. Empty if it holds none."""
        self.shared = allocate is readable_by_workers
        """Whether workers of this host can map it into their memory."""

    @classmethod
    def holding(cls, buffers: FlatBuffers) -> "WeightSet":
        """Make a set of existing weights; it takes the buffers over."""
        made = cls(())
        made.buffers = buffers
        return made

    def count_elements(self) -> int:
        """Return how many weights the set has."""
        return sum(slab.size for slab in self.buffers.all_slabs())

    def region_numbers(self) -> tuple[int, ...]:
        """Return the numbers of its shared regions, by extent."""
        return tuple(region.number for region in self.buffers.regions if isinstance(region, SharedRegion))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The immutable state of all groups at one version and revision."""

    version: JobVersion
    layouts: tuple[GroupLayout, ...]
    options: tuple[GroupOptions, ...]
    weights: WeightSet
    steps: StepRanges
    """For each group, the fewest and the most steps that any of its parameters has had."""
    effective: tuple[Options, ...]
    """For each group, the options of the next step: after schedules have been applied."""
    job_options: JobOptions = NO_OPTIONS
    """The options of the job as a whole."""

    def group_infos(self) -> tuple[GroupInfo, ...]:
        """Describe each group with its parameters."""
        pairs = zip(self.options, self.layouts, strict=True)
        return tuple(GroupInfo(index, options, layout.parameters) for index, (options, layout) in enumerate(pairs))

    def summary(self, index: int) -> GroupSummary:
        """Summarize a group."""
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
        """Summarize each group."""
        return tuple(self.summary(index) for index in range(len(self.layouts)))

    def arrays(self, group: int) -> list[Array]:
        """Return the weights of a group, an array for each segment. Do not write to them; they are valid while held."""
        return self.weights.buffers.arrays[group]


def changed_options(options: Options, effective: Options) -> Options:
    """Return the effective options that differ from the ones that were set."""
    return {} if effective is options else {n: v for n, v in effective.items() if v != options.get(n)}
