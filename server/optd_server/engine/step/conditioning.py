"""Clips the gradient of a step before the algorithm takes it, as options of the job and its groups ask.

With default options a gradient is neither changed nor read here. Otherwise it lies in a slot of the job, because the
server never writes to a worker's shared memory.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optd_server.engine.compute import Compute
from optd_server.engine.step.reduction import present_ranges
from optd_server.engine.step.values import takes_values
from optd_server.optim import group_options, job_options, option
from optd_server.optim.clipping import Bounds, Clipped, Piece, clip, group_norms
from optd_server.store.extents import Extent
from optd_server.store.gradients import Gradient
from optd_wire.values import JobOptions, Options

CLIPPING = (group_options.CLIP_NORM, group_options.CLIP_VALUE)
UNCLIPPED = Clipped(0.0, changed=False)
"""The result for a gradient without bounds."""


@dataclass(frozen=True, slots=True)
class GradientSettings:
    """The settings of gradients in the options of a job."""

    rounds: int
    """How many rounds make a step."""
    reduction: str
    """Whether gradients are reduced to their mean or to their sum."""
    nonfinite: str
    """How to treat a push with a NaN or an infinity."""
    norm_type: float
    """The p of the p-norms."""
    norm: float
    """The bound of the norm over all groups; infinity if there is none."""


def settings_of(options: JobOptions) -> GradientSettings:
    """Return the settings of gradients in the options of a job."""
    given = options.options
    return GradientSettings(
        option.integer(given, job_options.ACCUMULATE),
        str(option.text(given, job_options.REDUCTION)),
        str(option.text(given, job_options.NONFINITE)),
        option.number(given, job_options.CLIP_NORM_TYPE),
        _bound(given[job_options.CLIP_NORM]),
    )


def bounds_of(settings: GradientSettings, groups: Sequence[Options]) -> Bounds | None:
    """Return the bounds of a gradient, from the settings and the options of each group; None if there are none."""
    values = np.array([_bound(options.get(group_options.CLIP_VALUE)) for options in groups])
    norms = np.array([_bound(options.get(group_options.CLIP_NORM)) for options in groups])
    if math.isinf(settings.norm) and np.isinf(values).all() and np.isinf(norms).all():
        return None
    return Bounds(values, norms, settings.norm, settings.norm_type)


def bounded(
    gradient: Gradient,
    extents: Sequence[Extent],
    bounds: Bounds | None,
    norm_type: float,
    groups: int,
    compute: Compute,
) -> Clipped:
    """Compute the norms of a gradient by group, and clip it in place if there are bounds."""
    pieces = list(_pieces(gradient, extents))
    if bounds is not None and bounds.only_norms:
        return clip(pieces, bounds, compute.threads)
    norms = group_norms(pieces, groups, norm_type, compute.threads)
    return replace(UNCLIPPED if bounds is None else clip(pieces, bounds, compute.threads), norms=norms)


def scale_gradient(gradient: Gradient, extents: Sequence[Extent], factor: float, compute: Compute) -> None:
    """Multiply a gradient by a factor, in place. Values for groups that take values stay as they are."""
    with np.errstate(all="ignore"):
        for piece in _pieces(gradient, extents):
            compute.kernels.scale(piece.elements, factor, compute.threads)


def _pieces(gradient: Gradient, extents: Sequence[Extent]) -> Iterator[Piece]:
    """Yield the elements that a gradient has, by group, without those of groups that take values."""
    for extent, flags, slabs in zip(extents, gradient.presence, gradient.slabs, strict=False):
        for slab, present, elements in zip(extent.slabs, flags, slabs, strict=True):
            if takes_values(slab.kind):
                continue
            last = np.cumsum(slab.parameter_counts)
            for group, start, stop in zip(slab.groups, last - slab.parameter_counts, last, strict=True):
                here = slice(start, stop)
                for low, high in present_ranges(present[here], slab.starts[here], slab.sizes[here]):
                    yield Piece(group, elements[low:high])
    for rows in gradient.rows:
        yield Piece(rows.place.group, rows.values.reshape(-1))


def _bound(value: object) -> float:
    return value if isinstance(value, float) else math.inf
