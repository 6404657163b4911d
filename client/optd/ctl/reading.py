"""Reads the first numbers of weights, last gradient and state of a group's parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optd.ctl.connection import Connection
from optd.transport.numbers import Sink
from optd.transport.server_calls import ServerCalls
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.values import (
    GRADIENT,
    WEIGHTS,
    GroupSummary,
    JobVersion,
    ParameterReport,
    ParameterSpec,
    ReadStateResult,
)


@dataclass(frozen=True, slots=True)
class FieldReading:
    """The first numbers of one field of one parameter, row by row; `count` is how many it has in all."""

    parameter: str
    field: str
    count: int
    numbers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers of one version."""

    version: JobVersion
    fields: tuple[FieldReading, ...]


class _FirstNumbers:
    """Keeps the first `limit` numbers of each parameter and field of a group, and drops the others."""

    def __init__(self, group: int, reports: Sequence[ParameterReport], limit: int | None) -> None:
        self._group = group
        self._reports = reports
        self._limit = limit
        self.has_gradient = False
        """Whether any parameter has a gradient among the numbers."""
        self._offsets: dict[str, list[int]] = {}
        self._numbers: dict[str, list[npt.NDArray[np.float64]]] = {}

    def begin(self, result: ReadStateResult) -> Sink:
        """Learns which fields have flat buffers of their own, and resets what was kept."""
        self._offsets.clear()
        self.has_gradient = any(
            any(entry.present) for group in result.groups for entry in group.entries if entry.field == GRADIENT
        )
        self._numbers.clear()
        for group in result.groups:
            for entry in group.entries if group.group == self._group else ():
                # Of one parameter alone, its place among the others shows in the frames.
                if len(entry.shapes) == len(self._reports):
                    shaped = lay_out([ParameterSpec("", shape.sizes, shape.dtype) for shape in entry.shapes])
                    self._offsets[entry.field] = [parameter.offset for parameter in shaped.parameters]
                elif not entry.shapes:
                    self._offsets[entry.field] = [report.parameter.offset for report in self._reports]
        for field in (WEIGHTS, GRADIENT):
            self._offsets[field] = [report.parameter.offset for report in self._reports]
        return self._take

    def of(self, place: int, field: str) -> tuple[float, ...]:
        """The first numbers of the parameter of a report."""
        return tuple(self._kept(field)[place].tolist())

    def _kept(self, field: str) -> list[npt.NDArray[np.float64]]:
        if field not in self._numbers:
            sizes = [_count(report, field) for report in self._reports]
            kept = [size if self._limit is None else min(self._limit, size) for size in sizes]
            self._numbers[field] = [np.full(count, np.nan) for count in kept]
        return self._numbers[field]

    def _take(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame.group == self._group:
                self._take_one(frame)

    def _take_one(self, frame: Frame) -> None:
        numbers = frame.decoded(np.float64)
        offsets = self._offsets.setdefault(frame.field, [frame.offset])
        for start, kept in zip(offsets, self._kept(frame.field), strict=True):
            low, high = max(start, frame.offset), min(start + kept.size, frame.stop)
            if low < high:
                kept[low - start : high - start] = numbers[low - frame.offset : high - frame.offset]


def _count(report: ParameterReport, field: str) -> int:
    """How many numbers a parameter has in a field."""
    return next((each.statistics.count for each in report.fields if each.field == field), 0)


def read(
    server: Connection,
    job: str,
    group: GroupSummary,
    reports: Sequence[ParameterReport],
    parameter: str,
    limit: int | None,
) -> Reading:
    """Reads the fields that the reports tell of; `limit` numbers of each, None for all."""
    fields = tuple(dict.fromkeys(field.field for report in reports for field in report.fields))

    def attempt(transport: ServerCalls, left: float) -> Reading:
        first = _FirstNumbers(group.index, reports, limit)
        result = transport.read_state(job, fields, first.begin, left, group=group.options.group, parameter=parameter)
        found = tuple(
            FieldReading(report.parameter.name, field.field, field.statistics.count, first.of(place, field.field))
            for place, report in enumerate(reports)
            for field in report.fields
            if field.field != GRADIENT or first.has_gradient  # it may be gone since the report
        )
        return Reading(result.version, found)

    return server.ask(attempt)
