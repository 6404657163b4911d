"""Which parameters of a segment share coefficients in one step, and what these are.

A parameter's coefficients follow from its group's options, its own step count and its scalars, if it has any. Groups
with equal options share them, and so do parameters that always came together; if the algorithm does not use the step
count, all parameters do. `SharedCoefficients` works out once what depends on layout and options alone. A step then
costs a few operations on arrays of P, and Python only for combinations of options and step count that are new.

A *kind* is a number for what the elements of a parameter have in common: 0 if the parameter is absent and stays as it
is, else ``1 + 2 * row + fresh``, with `row` in the `CoefficientTable`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim import runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, Elementwise
from optd_server.optim.assignment import Assignment, Indices, Mask
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState

Coefficients: TypeAlias = tuple[Any, ...]
"""A NamedTuple of the algorithm's, its floats in the dtype of the data."""
_History: TypeAlias = tuple[int, tuple[float, ...]]
"""A parameter's step count, this step included, and its scalars before the step."""
_Row: TypeAlias = tuple[int, tuple[float, ...]]
"""A row of the table, and the scalars after the step."""

MOST_REMEMBERED = 1024
"""For how many steps the rows are remembered, beside four for each parameter."""


@dataclass(frozen=True)
class TableRow:
    """Coefficients, with the state fields that a step needs beside them: the algorithm's and master weights."""

    coefficients: Coefficients
    fields: tuple[str, ...]


class CoefficientTable:
    """The coefficients that a segment has needed lately. What no backend asks for is never computed.

    Threads may share it once `records` has been asked for.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._exact: list[tuple[Coefficients, tuple[str, ...]]] = []
        self._known: dict[tuple[Coefficients, tuple[str, ...]], int] = {}
        self._records = np.empty(0)
        self._recorded = 0
        self._rows: dict[int, TableRow] = {}
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
        """All rows as a structured array, with spare room at its end.

        Floats have the data's dtype, as torch rounds scalars.
        """
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
        """The family of each kind. Those of one family may share a block: they differ in array coefficients alone."""
        for coefficients, fields in self._exact[len(self._families) // 2 :]:
            # See `Algorithm.coefficients`.
            declared = getattr(type(coefficients), "__annotations__", {})
            scalar = [declared.get(name) is float for name in _names(coefficients)]
            rest = (fields, *(v for v, same in zip(coefficients, scalar, strict=True) if same or type(v) is not float))
            family = self._known_families.setdefault(rest, 1 + 2 * len(self._known_families))
            self._families += [family, family + 1]
        return self._families

    def with_field(self, name: str) -> Mask:
        """Return for each kind whether it has a field."""
        rows = np.array([name in fields for _, fields in self._exact], np.bool_)
        return np.concatenate(([False], np.repeat(rows, 2)))

    def of(self, kind: int) -> tuple[TableRow, bool]:
        """Return the row of a kind that is not 0, and whether its parameters are fresh."""
        number, fresh = divmod(kind - 1, 2)
        if number not in self._rows:
            exact, fields = self._exact[number]
            record = self.records[number]
            values = [record[i] if isinstance(value, float) else value for i, value in enumerate(exact)]
            self._rows[number] = TableRow(type(exact)(*values), fields)
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


class SharedCoefficients(Assignment):
    """An assignment that also tells which parameters share coefficients. Kept until the options change."""

    def __init__(
        self,
        algorithm: Elementwise,
        options: Sequence[Options],
        segment: SegmentState,
        counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(algorithm, options, segment, counts)
        self.algorithm = algorithm
        arrays = [field for field in (*algorithm.arrays, MASTER_WEIGHTS) if segment.has(field)]
        self._fields = [tuple(field.name for field in arrays if field.when(each)) for each in self.distinct]
        self._seeded = [field for field in self.needs if field.seeded]
        self._scalars = algorithm.scalars
        self._sizes, self._offsets = segment.sizes, segment.offsets
        self._together = runs.merge(segment.sizes, segment.offsets, self.which)
        self._forget(segment.dtype)

    def _forget(self, dtype: np.dtype[Any]) -> None:
        self.table = CoefficientTable(dtype)
        self._rows: list[dict[_History, _Row]] = [{} for _ in self.distinct]
        """For each of the distinct options, the rows of its steps."""
        self._remembered = 0
        """How many steps these are; at least as many as the table's rows, because several steps may share a row."""

    def sort(self, segment: SegmentState, present: Mask | None) -> runs.Runs:
        """Return the segment's runs in a step of the parameters in `present`, shape (P,), or of all.

        Sets their scalars to the values after the step.
        """
        if self._remembered > MOST_REMEMBERED + 4 * len(self.which):
            self._forget(segment.dtype)
        fresh = self._fresh(segment)
        low, high = int(segment.steps.min()), int(segment.steps.max())
        if low == high and present is None and fresh is None and not self._scalars:
            rows = [self._row(which, (low + 1, ()))[0] for which in range(len(self.distinct))]
            return runs.Runs(self._together.starts, 1 + 2 * np.array(rows)[self._together.kinds])
        kinds = 1 + 2 * self._rows_of(segment, present)
        if fresh is not None:
            kinds += fresh
        if present is not None:
            kinds[~present] = 0
        return runs.merge(self._sizes, self._offsets, kinds)

    def _fresh(self, segment: SegmentState) -> Mask | None:
        """Return which parameters have seeded fields that have never been set; None if no parameter has."""
        fresh = None
        for field in self._seeded:
            waiting = self.waiting(field, segment)
            if waiting.any():
                fresh = waiting if fresh is None else fresh | waiting
        return fresh

    def _rows_of(self, segment: SegmentState, present: Mask | None) -> Indices:
        """Return the row of each parameter, shape (P,); that of an absent one means nothing."""
        chosen: Any = slice(None) if present is None else present
        which = self.which[chosen]
        rows = np.zeros(len(self.which), np.int64)
        if len(which) == 0:
            return rows
        histories, ranks = self._histories(segment, chosen)
        codes = which * len(histories) + ranks
        seen = np.zeros(len(self.distinct) * len(histories), np.bool_)
        seen[codes] = True
        used = np.flatnonzero(seen)
        owners, places = np.divmod(used, len(histories))
        found = [
            self._row(owner, histories[place]) for owner, place in zip(owners.tolist(), places.tolist(), strict=True)
        ]
        place_of = np.zeros(len(seen), np.int64)
        place_of[used] = np.arange(len(used))
        places = place_of[codes]
        rows[chosen] = np.array([row for row, _ in found])[places]
        if self._scalars:
            after = np.array([scalars for _, scalars in found])[places]
            for field, column in zip(self._scalars, after.T, strict=True):
                segment.state[field.name][chosen] = column
        return rows

    def _histories(self, segment: SegmentState, chosen: Any) -> tuple[Sequence[_History], Indices]:
        """Return distinct step counts, with the scalars before the step, and which of them each chosen one has."""
        counts = segment.steps[chosen] + 1
        if self._scalars:
            columns = [segment.state[field.name][chosen].astype(np.float64) for field in self._scalars]
            table = np.column_stack([counts.astype(np.float64), *columns])
            distinct, ranks = np.unique(table, axis=0, return_inverse=True)
            return [(int(count), tuple(scalars)) for count, *scalars in distinct.tolist()], ranks.reshape(-1)
        low = int(counts.min())
        span = int(counts.max()) - low + 1
        if span * len(self.distinct) > 1024 + 8 * len(self.which):
            found, ranks = np.unique(counts, return_inverse=True)
            return [(count, ()) for count in found.tolist()], ranks
        return [(count, ()) for count in range(low, low + span)], counts - low

    def _row(self, which: int, history: _History) -> _Row:
        """Return the row of the options `which` at a step count, which counts from 1, and the scalars after it."""
        known = self._rows[which]
        row = known.get(history)
        if row is None:
            # In Python floats, although numpy could take many counts at once: its vectorised pow differs in bits from
            # the C library's, which torch uses, and a formula may branch on the count.
            exact, scalars = self.algorithm.numbers(self.distinct[which], *history)
            row = known[history] = self.table.add(exact, self._fields[which]), scalars
            self._remembered += 1
        return row
