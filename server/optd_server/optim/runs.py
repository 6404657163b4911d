"""How a segment is cut into work: long runs into blocks, short runs gathered, so that no layout is slow.

A *run* is a maximal range of elements whose parameters are of one kind, and a kind is whatever the caller
treats alike: in `step`, sharing coefficients. Most steps have one run, the whole segment. If parameters come and go one
by one, there may be thousands of runs of a few elements each, and a call for each would be overhead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

BLOCK = 65_536
"""Elements per block: all arrays of a step of Adam in float32, 1.75 MiB, fit a 2 MiB cache."""
SHORT = 1_024
"""Below this many elements, a run costs less to gather than to visit. Measured: Adam, float32, 2000 runs."""
MANY = 8
"""Gathering has a cost of its own; with fewer short runs than this it does not pay."""

Indices: TypeAlias = npt.NDArray[np.int64]


def elements(starts: Indices, lengths: Indices) -> Indices:
    """Return the indices ``starts[i]``, …, ``starts[i] + lengths[i] - 1`` for every i, concatenated."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True, slots=True)
class Span:
    """Elements start <= i < stop, all of one kind; at most `BLOCK` of them."""

    start: int
    stop: int
    kind: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class Patchwork:
    """Short runs of kinds of one family, to be gathered into one block; of about `BLOCK` elements at most."""

    starts: Indices
    lengths: Indices
    kinds: Indices

    @property
    def count(self) -> int:
        """The number of elements."""
        return int(self.lengths.sum())

    def elements(self) -> Indices:
        """Return the index of every element, in the order of the runs."""
        return elements(self.starts, self.lengths)


class Runs(NamedTuple):
    """All runs of a segment, in order."""

    starts: Indices
    """Where each of the R runs starts, and where the last one ends: shape (R + 1,), from 0 to N."""
    kinds: Indices
    """Shape (R,)."""


def merge(sizes: Indices, offsets: Indices, kinds: Indices) -> Runs:
    """Return the runs of parameters that lie one after the other. Empty parameters belong to no run and end none.

    Args:
        sizes: Elements of each parameter, shape (P,).
        offsets: Where each parameter starts, shape (P,).
        kinds: The kind of each parameter, shape (P,).
    """
    filled = sizes > 0
    if not filled.all():
        sizes, offsets, kinds = sizes[filled], offsets[filled], kinds[filled]
    if len(kinds) == 0:
        return Runs(np.zeros(1, np.int64), kinds)
    first = np.concatenate(([0], np.flatnonzero(kinds[1:] != kinds[:-1]) + 1))
    return Runs(np.append(offsets[first], offsets[-1] + sizes[-1]), kinds[first])


def cut(found: Runs, families: Sequence[int]) -> Iterator[Span | Patchwork]:
    """Cut runs into pieces of work that together hold every element once.

    Args:
        found: The runs; each kind is an index of `families`.
        families: The family of each kind. Short runs are gathered together only within a family.
    """
    starts, lengths, kinds = found.starts[:-1], np.diff(found.starts), found.kinds
    short = lengths < SHORT
    if np.count_nonzero(short) < MANY:
        short[:] = False
    long = ~short
    for start, length, kind in zip(starts[long], lengths[long], kinds[long], strict=True):
        yield from _blocks(int(start), int(start + length), int(kind))
    if short.any():
        yield from _patchworks(starts[short], lengths[short], kinds[short], np.asarray(families))


def _blocks(start: int, stop: int, kind: int) -> Iterator[Span]:
    for begin in range(start, stop, BLOCK):
        yield Span(begin, min(begin + BLOCK, stop), kind)


def _patchworks(starts: Indices, lengths: Indices, kinds: Indices, families: Indices) -> Iterator[Patchwork]:
    for family in np.unique(families[kinds]):
        member = families[kinds] == family
        # A run goes to the piece in which it begins in the concatenation, so that no run is split.
        sheet = (np.cumsum(lengths[member]) - lengths[member]) // BLOCK
        limits = np.flatnonzero(np.diff(sheet)) + 1
        pieces = (np.split(array[member], limits) for array in (starts, lengths, kinds))
        yield from map(Patchwork, *pieces)
