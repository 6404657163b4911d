"""Summarize an array in a few numbers, for people who watch weights, gradients and state."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.runs import BLOCK


@dataclass(frozen=True)
class Statistics:
    """Statistics of the finite elements of an array, in float64; NaN if there are none."""

    count: int
    """The number of all elements."""
    nonfinite: int
    """The number of NaN and infinite elements, which nothing below includes."""
    zeros: int
    norm: float
    """The L2 norm; 0 if there are no elements, inf if its square is beyond float64."""
    mean: float
    std: float
    """The population's standard deviation, as ``numpy.std``: divided by the number of elements."""
    min: float
    max: float
    histogram: tuple[int, ...]
    """Elements in each bin; the last bin includes its right edge."""
    edges: tuple[float, ...]
    """One more edge than bins, from min to max; a little wider if these are too close for distinct edges."""


def summarize(array: npt.NDArray[np.floating[Any]], bins: int = 32) -> Statistics:
    """Summarize an array of any shape and float dtype, in two passes, without a float64 copy of it."""
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        moments = _moments(flat)
        histogram, edges = _histogram(flat, bins, moments)
    some = moments.finite > 0
    return Statistics(
        count=flat.size,
        nonfinite=flat.size - moments.finite,
        zeros=flat.size - int(np.count_nonzero(flat)),
        norm=math.sqrt(moments.squares),
        mean=moments.mean if some else math.nan,
        std=math.sqrt(moments.deviation / moments.finite) if some else math.nan,
        min=moments.min if some else math.nan,
        max=moments.max if some else math.nan,
        histogram=tuple(histogram.tolist()),
        edges=tuple(edges.tolist()),
    )


@dataclass
class _Moments:
    finite: int = 0
    mean: float = 0.0
    deviation: float = 0.0
    """Sum of squared differences from the mean."""
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf


def _moments(flat: npt.NDArray[np.floating[Any]]) -> _Moments:
    """Merge the moments of blocks (Chan, Golub & LeVeque 1979), so that no large sums cancel."""
    total = _Moments()
    for block in _finite_blocks(flat):
        mean = float(block.mean())
        finite = total.finite + len(block)
        apart = mean - total.mean
        total.deviation += float(np.square(block - mean).sum())
        total.deviation += apart * apart * total.finite * (len(block) / finite)
        total.mean += apart * (len(block) / finite)
        total.squares += float(np.square(block).sum())
        total.min = min(total.min, float(block.min()))
        total.max = max(total.max, float(block.max()))
        total.finite = finite
    return total


def _histogram(
    flat: npt.NDArray[np.floating[Any]], bins: int, moments: _Moments
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    if bins == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    low, high = _limits(moments, bins)
    # The width of a range from -1e308 to 1e308 overflows float64: count in quarters, which are exact.
    scale = 1.0 if math.isfinite(high - low) else 0.25
    limits = (low * scale, high * scale)
    counts = np.zeros(bins, np.int64)
    for block in _finite_blocks(flat):
        counts += np.histogram(block * scale, bins, limits)[0]
    return counts, np.histogram_bin_edges(np.empty(0), bins, limits) / scale


def _limits(moments: _Moments, bins: int) -> tuple[float, float]:
    """Return the range of the histogram: min to max, or wider if too few numbers lie between them."""
    if moments.finite == 0:
        return 0.0, 1.0
    low, high = moments.min, moments.max
    largest = max(abs(low), abs(high))
    if high - low > bins * max(largest * 1e-12, 1e-300):
        return low, high
    margin = largest / 2 if largest > 1e-290 else 0.5
    # Not past the largest float64.
    return max(low - margin, -sys.float_info.max), min(high + margin, sys.float_info.max)


def _finite_blocks(flat: npt.NDArray[np.floating[Any]]) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        finite = np.isfinite(block)
        if not finite.all():
            block = block[finite]
        if len(block):
            yield block.astype(np.float64)
