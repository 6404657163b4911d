"""The numbers themselves: the first ones of weights, last gradient and state of a group's parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optd.ctl.connection import Connection
from optd.transport.base import Transport
from optd_wire.frames import Frame
from optd_wire.values import GroupSummary, JobVersion, ParameterReport


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
    """A sink that keeps the first `limit` numbers of each parameter and field, and lets the rest pass by."""

    def __init__(self, group: int, reports: Sequence[ParameterReport], limit: int | None) -> None:
        self._group = group
        self._ranges = {
            report.parameter.name: (
                report.parameter.offset,
                report.parameter.size if limit is None else min(limit, report.parameter.size),
            )
            for report in reports
        }
        self.numbers: dict[tuple[str, str], npt.NDArray[np.float64]] = {
            (report.parameter.name, field.field): np.full(self._ranges[report.parameter.name][1], np.nan)
            for report in reports
            for field in report.fields
        }

    def __call__(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.group != self._group:
            return
        numbers = frame.decoded()
        for name, (start, kept) in self._ranges.items():
            low, high = max(start, frame.offset), min(start + kept, frame.stop)
            if low < high and (name, frame.field) in self.numbers:
                part = numbers[low - frame.offset : high - frame.offset]
                self.numbers[name, frame.field][low - start : high - start] = part


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

    def attempt(transport: Transport, left: float) -> Reading:
        sink = _FirstNumbers(group.index, reports, limit)
        result = transport.read_state(job, fields, sink, left, group=group.options.group, parameter=parameter)
        return Reading(
            result.version,
            tuple(
                FieldReading(
                    report.parameter.name,
                    field.field,
                    report.parameter.size,
                    tuple(sink.numbers[report.parameter.name, field.field].tolist()),
                )
                for report in reports
                for field in report.fields
            ),
        )

    return server.ask(attempt)
