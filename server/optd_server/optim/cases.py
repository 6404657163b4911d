"""Which parameters of a segment share coefficients in one step, and what these are.

A parameter's coefficients follow from the options and its own step count. Parameters that always came
together share them; so do all, where the algorithm does not use the step count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Algorithm
from optd_server.optim.option import Options

Coefficients: TypeAlias = tuple[Any, ...]
"""A NamedTuple of the algorithm's, its floats in the dtype of the data."""


@dataclass(frozen=True)
class Case:
    """What the elements of some parameters have in common in one step."""

    coefficients: Coefficients
    fresh: bool

    @property
    def family(self) -> tuple[Any, ...]:
        """What must be the same for a whole block: freshness, and all that is not a float."""
        return (self.fresh, *(value for value in self.coefficients if not isinstance(value, np.floating)))


@dataclass(frozen=True)
class Cases:
    """The cases of one step, and which parameter falls under which."""

    kinds: npt.NDArray[np.int64]
    """For each parameter an index of `cases`, shape (P,)."""
    cases: Sequence[Case | None]
    """None: such parameters are absent and stay as they are."""
    dtype: np.dtype[Any]

    def families(self) -> list[int]:
        """Return a number for the family of each case. Only within one may cases share a block."""
        known: dict[tuple[Any, ...], int] = {}
        keys = [() if case is None else case.family for case in self.cases]
        return [known.setdefault(key, len(known)) for key in keys]

    def spread(self, kinds: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Coefficients:
        """Return the coefficients of runs of some kinds and lengths, all of one family and none absent.

        A coefficient in which the runs differ becomes an array of as many elements as the runs hold.
        """
        distinct, which = np.unique(kinds, return_inverse=True)
        rows = [case.coefficients for case in (self.cases[kind] for kind in distinct) if case is not None]
        columns = [
            values[0]
            if all(value == values[0] for value in values)
            else np.repeat(np.asarray(values, self.dtype)[which], lengths)
            for values in zip(*rows, strict=True)
        ]
        spread: Coefficients = type(rows[0])(*columns)
        return spread


def sort(
    algorithm: Algorithm,
    options: Options,
    *,
    steps: npt.NDArray[np.int64],
    present: npt.NDArray[np.bool_],
    fresh: npt.NDArray[np.bool_],
    dtype: np.dtype[Any],
) -> Cases:
    """Sort parameters into cases, by three arrays of shape (P,).

    Args:
        algorithm: Whose coefficients.
        options: Resolved options.
        steps: The step counts, this step included.
        present: Which parameters take part in the step.
        fresh: Whose seeded fields have never been set.
        dtype: Of the data.
    """
    counts, which = np.unique(steps[present], return_inverse=True)
    numbers: dict[Coefficients, int] = {}
    # One count at a time, in Python floats, although numpy could take them all: its vectorised pow has not
    # the bits of the C library's, which torch uses, and a formula may well branch on the count.
    of_count = [
        numbers.setdefault(_rounded(algorithm.coefficients(options, int(count)), dtype), len(numbers))
        for count in counts
    ]
    kinds = np.zeros(len(steps), np.int64)
    kinds[present] = 1 + 2 * np.asarray(of_count, np.int64)[which] + fresh[present]
    return Cases(kinds, [None, *(Case(c, seed) for c in numbers for seed in (False, True))], dtype)


def _rounded(coefficients: Coefficients, dtype: np.dtype[Any]) -> Coefficients:
    """Return coefficients with their floats in the data's dtype, to which torch rounds scalars, too."""
    with np.errstate(all="ignore"):
        values = [dtype.type(value) if isinstance(value, float) else value for value in coefficients]
    return type(coefficients)(*values)
