"""Reduce many gradients to one: their mean, in the order in which they are given.

For a parameter that n of the contributors have, ``mean = (g_1 + g_2 + … + g_n) * (1 / n)``, summed from left to right
in the dtype of the data. If everyone has everything, this is the sum over N contributors divided by N, as in
DistributedDataParallel. A parameter that some lack is averaged over those that have it.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Vector
from optd_server.optim.finite import all_finite
from optd_server.optim.runs import BLOCK, Indices
from optd_server.optim.threads import share

Mask: TypeAlias = npt.NDArray[np.bool_]


class Contribution(NamedTuple):
    """A gradient of N elements, and which of the P parameters it has; None means all."""

    gradient: Vector
    present: Mask | None = None


class Reduction(NamedTuple):
    """Facts about a mean."""

    present: Mask
    """Which parameters at least one contribution has, shape (P,)."""
    finite: bool
    """Whether every element is finite."""


def presence(contributions: Sequence[Contribution], count: int) -> Mask:
    """Return which of `count` parameters each contribution has, shape (contributions, P)."""
    everything = np.ones(count, np.bool_)
    return np.array([everything if c.present is None else c.present for c in contributions])


def reduce_mean(out: Vector, contributions: Sequence[Contribution], sizes: Indices, threads: int = 1) -> Reduction:
    """Write the mean of the contributions to `out`.

    The same contributions in the same order give the same bits, whoever else contributes to other parameters.
    Elements of a contribution that belong to an absent parameter do not count, not even NaN.

    Args:
        out: Shape (N,). Every element is written: zeros for a parameter that no contribution has. Shares no memory
            with the contributions.
        contributions: At least one, of the dtype of `out`. Not modified.
        sizes: Elements of each parameter, shape (P,), with sum N.
        threads: How many threads share the work, this one included.
    """
    masks = presence(contributions, len(sizes))
    contributors = masks.sum(axis=0)
    ends = np.cumsum(sizes)

    def work(first: int, last: int) -> bool:
        finite = True
        with np.errstate(all="ignore"):
            for start in range(first, last, BLOCK):
                here = slice(start, min(start + BLOCK, last))
                owners, lengths = _owners(ends, sizes, here)
                scale = 1 / np.maximum(contributors[owners], 1)
                gradients = [c.gradient[here] for c in contributions]
                _mean_of_block(out[here], gradients, masks[:, owners], scale.astype(out.dtype), lengths)
                finite = finite and all_finite(out[here])
        return finite

    finite = all(share(work, len(out), threads))
    return Reduction(contributors > 0, finite)


def _owners(ends: Indices, sizes: Indices, here: slice) -> tuple[slice, Indices]:
    """Return the parameters that have elements in a block, and how many each has there."""
    first = int(np.searchsorted(ends, here.start, side="right"))
    last = int(np.searchsorted(ends, here.stop - 1, side="right"))
    owners = slice(first, last + 1)
    stops = np.minimum(ends[owners], here.stop)
    starts = np.maximum(ends[owners] - sizes[owners], here.start)
    return owners, stops - starts


def _mean_of_block(out: Vector, gradients: Sequence[Vector], masks: Mask, scale: Vector, lengths: Indices) -> None:
    """Reduce one block: K gradients, masks of shape (K, parameters), scale and length of each parameter."""
    # Adding -0.0 leaves every number as it is, -0.0 included; adding 0.0 does not.
    out.fill(-0.0)
    for gradient, mask in zip(gradients, masks, strict=True):
        if mask.all():
            np.add(out, gradient, out=out)
        elif mask.any():
            np.add(out, gradient, out=out, where=np.repeat(mask, lengths))
    if (scale == scale[0]).all():
        np.multiply(out, scale[0], out=out)
    else:
        np.multiply(out, np.repeat(scale, lengths), out=out)
