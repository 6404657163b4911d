"""Which parameters of a segment share coefficients in one step, and what these are.

A parameter's coefficients follow from its group's options and its own step count. Groups of equal options share
them, parameters that always came together do, and all do where the algorithm does not use the step count. What
depends on layout and options alone is worked out once, in a `Plan`; a step then costs a few operations on arrays
of P, and Python only for combinations of options and step count that are new.

A *kind* is a number for what the elements of a parameter have in common: 0 where it is absent and stays as it is,
else ``1 + 2 * row + fresh``, with `row` in the `Table`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim import runs
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState

Coefficients: TypeAlias = tuple[Any, ...]
"""A NamedTuple of the algorithm's, its floats in the dtype of the data."""
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """Coefficients, and the state fields that go with them."""

    coefficients: Coefficients
    fields: tuple[str, ...]


class Table:
    """The rows that a segment has needed lately. What a backend does not ask for is not worked out.

    Threads may share it once `records` has been asked for.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._exact: list[tuple[Coefficients, tuple[str, ...]]] = []
        self._known: dict[tuple[Coefficients, tuple[str, ...]], int] = {}
        self._records = np.empty(0)
        self._recorded = 0
        self._rows: dict[int, Row] = {}
        self._families: list[int] = [0]
        self._known_families: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._exact)

    def add(self, coefficients: Coefficients, fields: tuple[str, ...]) -> int:
        """Return the number of a row, a new one if need be, by coefficients in Python floats."""
        row = (coefficients, fields)
        number = self._known.setdefault(row, len(self._exact))
        if number == len(self._exact):
            self._exact.append(row)
        return number

    @property
    def records(self) -> npt.NDArray[Any]:
        """All rows as a structured array, with room behind. Floats are of the data's dtype, as torch rounds scalars."""
        new = [tuple(coefficients) for coefficients, _ in self._exact[self._recorded :]]
        if new:
            if len(self._exact) > len(self._records):
                grown = np.zeros(2 * len(self._exact) + 16, record_dtype(self._exact[0][0], self._dtype))
                grown[: self._recorded] = self._records[: self._recorded]
                self._records = grown
            with np.errstate(all="ignore"):
                self._records[self._recorded : len(self._exact)] = new
            self._recorded = len(self._exact)
        return self._records

    @property
    def families(self) -> Sequence[int]:
        """By kind. Kinds of one family may share a block: the same but for coefficients that may be arrays there."""
        for coefficients, fields in self._exact[len(self._families) // 2 :]:
            # See `Algorithm.coefficients`.
            declared = getattr(type(coefficients), "__annotations__", {})
            scalar = [declared.get(name) is float for name in _names(coefficients)]
            rest = (fields, *(v for v, same in zip(coefficients, scalar, strict=True) if same or type(v) is not float))
            family = self._known_families.setdefault(rest, 1 + 2 * len(self._known_families))
            self._families += [family, family + 1]
        return self._families

    def of(self, kind: int) -> tuple[Row, bool]:
        """Return the row of a kind that is not 0, and whether its parameters are fresh."""
        number, fresh = divmod(kind - 1, 2)
        if number not in self._rows:
            exact, fields = self._exact[number]
            record = self.records[number]
            values = [record[i] if isinstance(value, float) else value for i, value in enumerate(exact)]
            self._rows[number] = Row(type(exact)(*values), fields)
        return self._rows[number], bool(fresh)

    def spread(self, kinds: runs.Indices, lengths: runs.Indices) -> Coefficients:
        """Return the coefficients of runs of some kinds and lengths, all of one family and none absent.

        A coefficient in which the runs differ becomes an array of as many elements as the runs hold.
        """
        first = self.of(int(kinds[0]))[0].coefficients
        records = self.records[(kinds - 1) >> 1]
        columns = [
            value if (column == value).all() else np.repeat(column, lengths)
            for value, column in zip(first, map(records.__getitem__, records.dtype.names or ()), strict=True)
        ]
        spread: Coefficients = type(first)(*columns)
        return spread


def record_dtype(coefficients: Coefficients, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the structured dtype of an algorithm's coefficients for data of a dtype."""
    names = _names(coefficients)
    kinds = [dtype if isinstance(value, float) else np.dtype(type(value)) for value in coefficients]
    return np.dtype(list(zip(names, kinds, strict=True)), align=True)


def _names(coefficients: Coefficients) -> Sequence[str]:
    return getattr(coefficients, "_fields", [f"f{i}" for i in range(len(coefficients))])


class Plan:
    """How the parameters of one segment sort under the options of its groups. Kept until these change."""

    def __init__(self, algorithm: Algorithm, options: Sequence[Options], segment: SegmentState) -> None:
        self._algorithm = algorithm
        self._options = tuple(options)
        self._distinct, of_group = _distinct(options)
        self._fields = [tuple(field.name for field in algorithm.fields(each)) for each in self._distinct]
        self._which: runs.Indices = np.repeat(of_group, segment.groups)
        """Which of the distinct options each parameter has, shape (P,)."""
        self.needs: dict[str, Mask] = {
            field.name: needs
            for field in algorithm.state
            if (needs := np.array([field.name in names for names in self._fields], np.bool_)[self._which]).any()
        }
        """Which parameters need a field, shape (P,)."""
        self._seeded = [field.name for field in algorithm.state if field.seeded and field.name in self.needs]
        self._sizes, self._offsets = segment.sizes, segment.offsets
        self._together = runs.merge(segment.sizes, segment.offsets, self._which)
        self._forget(segment.dtype)

    def _forget(self, dtype: np.dtype[Any]) -> None:
        self.table = Table(dtype)
        self._rows: list[dict[int, int]] = [{} for _ in self._distinct]
        """For each of the distinct options, row by step count."""

    def fits(self, algorithm: Algorithm, options: Sequence[Options]) -> bool:
        """Whether the plan was made for this algorithm and these very objects."""
        return (
            algorithm is self._algorithm
            and len(options) == len(self._options)
            and all(map(lambda ours, theirs: ours is theirs, self._options, options))
        )

    def sort(self, segment: SegmentState, present: Mask | None) -> runs.Runs:
        """Return the segment's runs in a step that the parameters of `present`, shape (P,) or all, take part in."""
        if len(self.table) > 1024 + 4 * len(self._which):
            self._forget(segment.dtype)
        fresh = self._fresh(segment)
        low, high = int(segment.steps.min()), int(segment.steps.max())
        if low == high and present is None and fresh is None:
            rows = [self._row(which, low + 1) for which in range(len(self._distinct))]
            return runs.Runs(self._together.starts, 1 + 2 * np.array(rows)[self._together.kinds])
        kinds = 1 + 2 * self._rows_of(segment.steps + 1, present)
        if fresh is not None:
            kinds += fresh
        if present is not None:
            kinds[~present] = 0
        return runs.merge(self._sizes, self._offsets, kinds)

    def _fresh(self, segment: SegmentState) -> Mask | None:
        """Return whose seeded fields have never been set; None where there are none."""
        fresh = None
        for name in self._seeded:
            waiting = self.needs[name] & ~segment.started[name]
            if waiting.any():
                fresh = waiting if fresh is None else fresh | waiting
        return fresh

    def _rows_of(self, steps: runs.Indices, present: Mask | None) -> runs.Indices:
        """Return the row of each parameter, shape (P,); of absent ones anything."""
        chosen: Any = slice(None) if present is None else present
        counts, which = steps[chosen], self._which[chosen]
        rows = np.zeros(len(steps), np.int64)
        if len(counts) == 0:
            return rows
        low = int(counts.min())
        span = int(counts.max()) - low + 1
        if span * len(self._distinct) > 1024 + 8 * len(steps):
            distinct, ranks = np.unique(counts, return_inverse=True)
        else:
            distinct, ranks = np.arange(low, low + span), counts - low
        codes = which * len(distinct) + ranks
        table = np.zeros(len(self._distinct) * len(distinct), np.int64)
        seen = np.zeros(len(table), np.bool_)
        seen[codes] = True
        used = np.flatnonzero(seen)
        owners, places = np.divmod(used, len(distinct))
        table[used] = [self._row(*pair) for pair in zip(owners.tolist(), distinct[places].tolist(), strict=True)]
        rows[chosen] = table[codes]
        return rows

    def _row(self, which: int, count: int) -> int:
        """Return the row of the options `which` at a step count, which counts from 1."""
        known = self._rows[which]
        row = known.get(count)
        if row is None:
            # In Python floats, although numpy could take many counts at once: its vectorised pow has not the bits of
            # the C library's, which torch uses, and a formula may well branch on the count.
            exact = self._algorithm.coefficients(self._distinct[which], count)
            row = known[count] = self.table.add(exact, self._fields[which])
        return row


def _distinct(options: Sequence[Options]) -> tuple[list[Options], runs.Indices]:
    """Return the options that differ, and which of them each group has."""
    by_content: dict[Any, int] = {}
    distinct: list[Options] = []
    by_identity: dict[int, int] = {}
    for each in options:
        if id(each) in by_identity:
            continue
        number = by_content.setdefault(tuple(each.items()), len(distinct))
        if number == len(distinct):
            distinct.append(each)
        by_identity[id(each)] = number
    return distinct, np.array([by_identity[id(each)] for each in options], np.int64)
