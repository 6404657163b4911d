"""Clip gradients that are too large: by value, by the norm of a group, by the norm over all groups, in this order.

As in `torch.nn.utils.clip_grad_value_` and `clip_grad_norm_`, with the p-norm n of what is clipped and its bound m,
every element is multiplied by ``min(1, m / (n + 1e-6))``. Norms are computed in float64, whatever dtype the gradient
has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Vector
from optd_server.optim.runs import BLOCK
from optd_server.optim.threads import share

EPSILON = 1e-6
"""torch adds this to a norm before it divides by it."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """For each group, the largest magnitude of an element and the largest norm; over all groups, the largest norm.

    Infinity stands for no bound. `p` is the kind of all norms, in (0, inf].
    """

    values: Floats
    norms: Floats
    norm: float
    p: float

    @property
    def any_norm(self) -> bool:
        """Whether norms have to be computed."""
        return self.norm < math.inf or bool((self.norms < math.inf).any())

    @property
    def only_norms(self) -> bool:
        """Whether only norms have bounds, and elements have none."""
        return self.any_norm and bool(np.isinf(self.values).all())


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of a gradient of one group; contiguous, written in place."""

    group: int
    elements: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Clipped:
    """The result of clipping: the norm over all groups before clipping (0 if not asked for), and whether it changed."""

    norm: float
    changed: bool
    norms: Floats | None = None
    """The norm of each group before clipping; None if not asked for."""


def clip(pieces: Sequence[Piece], bounds: Bounds, threads: int = 1) -> Clipped:
    """Clip a gradient in place; groups are numbered as in `bounds`. Writes nothing if no bound is exceeded."""
    changed = False
    for piece in pieces:
        if bounds.values[piece.group] < math.inf:
            changed |= clip_values(piece.elements, float(bounds.values[piece.group]), threads)
    if not bounds.any_norm:
        return Clipped(0.0, changed)
    norms = group_norms(pieces, len(bounds.norms), bounds.p, threads)
    factors = _factor(norms, bounds.norms)
    with np.errstate(invalid="ignore"):
        factors = factors * _factor(norm_of(norms * factors, bounds.p), bounds.norm)
    for piece in pieces:
        if factors[piece.group] != 1:  # NaN, from a sum that has overflowed, spreads as in torch
            changed = True
            _scale(piece.elements, float(factors[piece.group]), threads)
    return Clipped(norm_of(norms, bounds.p), changed, norms)


def _factor(norm: Any, bound: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.where(np.isinf(bound), 1.0, np.minimum(1.0, np.divide(bound, np.add(norm, EPSILON))))


def group_norms(pieces: Sequence[Piece], groups: int, p: float, threads: int = 1) -> Floats:
    """Return the p-norm of each group, shape (groups,); 0 for a group without elements."""
    collected: list[list[float]] = [[] for _ in range(groups)]
    for piece in pieces:
        collected[piece.group].append(vector_norm(piece.elements, p, threads))
    return np.array([norm_of(np.asarray(norms), p) for norms in collected], np.float64)


def norm_of(numbers: npt.NDArray[np.floating[Any]], p: float) -> float:
    """Return the p-norm of a few numbers; norms of parts give the norm of the whole."""
    if not numbers.size:
        return 0.0
    magnitudes = np.abs(numbers.astype(np.float64))
    largest = float(magnitudes.max())
    if math.isinf(p) or largest == 0 or not math.isfinite(largest):
        return largest
    # Relative to the largest one: powers neither overflow nor vanish.
    return largest * math.pow(float(np.sum((magnitudes / largest) ** p)), 1 / p)


def vector_norm(elements: npt.NDArray[np.floating[Any]], p: float, threads: int = 1) -> float:
    """Return the p-norm of an array of any length."""

    def work(first: int, last: int) -> list[float]:
        return [_block_norm(elements[start : min(start + BLOCK, last)], p) for start in range(first, last, BLOCK)]

    parts = [norm for found in share(work, len(elements), threads, unit=BLOCK) for norm in found]
    # Sorted, so that the sum does not depend on the order in which threads finish.
    return norm_of(np.sort(np.asarray(parts)), p)


def _block_norm(block: npt.NDArray[np.floating[Any]], p: float) -> float:
    if p == 2:
        wide = block.astype(np.float64)
        with np.errstate(all="ignore"):
            squares = float(np.dot(wide, wide))
        # Squares that overflow or vanish take the slow way.
        if 1e-200 < squares < math.inf:
            return math.sqrt(squares)
    return norm_of(block, p)


def clip_values(elements: Vector, bound: float, threads: int = 1) -> bool:
    """Set elements outside of -bound … bound to the nearer bound, in place; return whether there were any."""
    with np.errstate(over="ignore"):
        limit = elements.dtype.type(bound)

    def work(first: int, last: int) -> bool:
        changed = False
        for start in range(first, last, BLOCK):
            block = elements[start : min(start + BLOCK, last)]
            changed |= bool((np.abs(block) > limit).any())
            np.clip(block, -limit, limit, out=block)
        return changed

    return any(share(work, len(elements), threads))


def _scale(elements: Vector, factor: float, threads: int) -> None:
    rounded = elements.dtype.type(factor)

    def work(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            np.multiply(elements[first:last], rounded, out=elements[first:last])

    share(work, len(elements), threads)
