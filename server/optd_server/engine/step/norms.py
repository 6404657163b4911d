"""The norms of a step by group: of its gradient, and of its update to the weights."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from optd_server.engine.compute import Compute
from optd_server.engine.options.groups import Groups
from optd_server.engine.step.values import takes_values
from optd_server.optim.clipping import norm_of
from optd_server.optim.difference import difference_norm
from optd_server.store.extents import Slab
from optd_server.store.flat import Array, FlatBuffers
from optd_server.store.recent_changes import ChangedBySlab, ChangedElements
from optd_wire.values import GroupNorms

Pair = tuple[int, Array, Array]
"""A group, and elements of it after and before the step."""


def norms_of_step(
    groups: Groups,
    gradient: npt.NDArray[np.float64],
    before: FlatBuffers,
    after: FlatBuffers,
    changes: ChangedBySlab,
    p: float,
    compute: Compute,
) -> tuple[GroupNorms, ...]:
    """Returns the p-norms over all groups, and then of each group, of the gradient and of the update.

    `gradient` has the norms of the gradient by group. Weights are read only where `changes` says that the step has
    changed them. Groups that take values have norms of 0.
    """
    found: list[list[float]] = [[] for _ in range(len(groups))]
    for number, extent in enumerate(groups.extents):
        for index, slab in enumerate(extent.slabs):
            if takes_values(slab.kind):
                continue
            arrays = after.slabs[number][index], before.slabs[number][index]
            for group, new, old in _changed(slab, changes[number][index], *arrays):
                found[group].append(difference_norm(new, old, p, compute.threads))
    updates = np.array([norm_of(np.asarray(parts), p) for parts in found], np.float64)
    overall = GroupNorms("", norm_of(gradient, p), norm_of(updates, p))
    return overall, *map(GroupNorms, groups.names, gradient.tolist(), updates.tolist())


def _changed(slab: Slab, change: ChangedElements | None, new: Array, old: Array) -> Iterator[Pair]:
    """Yields the elements of a slab that a step has changed, by group."""
    last = np.cumsum(slab.parameter_counts)
    for group, first, end in zip(slab.groups, last - slab.parameter_counts, last, strict=True):
        if first == end:
            continue
        start, stop = int(slab.starts[first]), int(slab.starts[end - 1] + slab.sizes[end - 1])
        for low, high in ((start, stop),) if change is None else change.ranges:
            here = slice(max(low, start), min(high, stop))
            if here.start < here.stop:
                yield group, new[here], old[here]
    for place, ids in () if change is None else change.rows:
        yield place.group, place.table(new)[ids].reshape(-1), place.table(old)[ids].reshape(-1)
