"""One group and its parameters: `group`."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.commands.arguments import Group, Job
from optd.ctl.invocation import Invocation
from optd.ctl.reading import Reading, read
from optd.ctl.tables import Column, FittingTable, facts, table
from optd.transport.requests import GroupInspection
from optd_wire.values import GRADIENT, WEIGHTS, FieldStatistics, GroupOptions, GroupSummary, ParameterReport, Statistics

BINS = 12
# So many fields of a parameter fit beside each other.
SIDE_BY_SIDE = 4


def group(
    invocation: Invocation,
    job: Job,
    group: Group,
    parameter: Annotated[
        str | None, typer.Option("--parameter", "-p", metavar="NAME", help="Only this one, with all of its fields.")
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Also the numbers of weights, last gradient and state.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="How many numbers of each field; 0 is all.")
    ] = 20,
) -> None:
    """Show the parameters of a group: shapes, steps, norms and extremes."""
    found = invocation.server.ask(
        lambda server, left: server.inspect_group(
            job, group, left, parameter=parameter or "", statistics=True, bins=BINS
        )
    )
    summary, reports = found.group, found.parameters
    reading = read(invocation.server, job, summary, reports, parameter or "", limit or None) if values else None
    gradient = {"gradient_version": found.gradient_version, "gradient_note": found.gradient_note}
    answer = {"group": summary, "parameters": reports, **gradient} | ({} if reading is None else {"values": reading})
    shown = _one(reports[0]) if parameter else [_parameters(reports)]
    invocation.answer(answer, _head(job, summary), "", *shown, *_about(found), *_numbers(reading))


def _about(found: GroupInspection) -> list[RenderableType]:
    """What is to be said of the gradient, where something is."""
    if not found.gradient_note:
        return []
    of = (
        "no gradient" if found.gradient_version is None else f"gradient of version {text.count(found.gradient_version)}"
    )
    return ["", f"{of}: {found.gradient_note}"]


def _head(job: str, summary: GroupSummary) -> RenderableType:
    options = summary.options
    return facts(
        [
            ("group", f"{options.group} of {job}, index {summary.index}"),
            ("algorithm", options.algorithm),
            ("parameters", f"{text.count(summary.parameters)} with {text.counted(summary.elements, 'element')}"),
            ("dtype", ", ".join(summary.dtypes)),
            ("steps", text.steps(summary.min_steps, summary.max_steps)),
            ("options", text.options(options.options, text.in_order(options.options))),
            *([("now", _now(summary))] if summary.effective else []),
            ("changed", _changes(options)),
        ]
    )


def _now(summary: GroupSummary) -> str:
    """What schedules make of options in the step that comes next."""
    return text.options(summary.effective, text.in_order(summary.effective))


def _changes(options: GroupOptions) -> str:
    if not options.revision:
        return "never"
    return f"{text.counted(options.revision, 'time')}, the last at version {text.count(options.since_version)}"


def _parameters(reports: Sequence[ParameterReport]) -> FittingTable:
    """A line for each; dtype and steps only where they are not the same for all, as the head tells them then."""
    dtypes = len({report.parameter.dtype for report in reports}) > 1
    steps = len({report.steps for report in reports}) > 1
    ruled = any(report.overrides for report in reports)
    columns = [
        Column("parameter"),
        Column("shape"),
        *([Column("dtype")] if dtypes else []),
        *([Column("steps", number=True)] if steps else []),
        *([Column("by rules")] if ruled else []),
        Column("weights\nnorm", number=True),
        Column("weights\nmin .. max", number=True, spare=True),
        Column("gradient\nnorm", number=True),
        Column("gradient\nmin .. max", number=True, spare=True),
    ]
    rows = []
    for report in reports:
        found = {field.field: field.statistics for field in report.fields}
        rows.append(
            [
                report.parameter.name,
                text.shape(report.parameter.shape),
                *([report.parameter.dtype] if dtypes else []),
                *([text.count(report.steps)] if steps else []),
                *([_overrides(report) or text.NONE] if ruled else []),
                *_norm_and_span(found.get(WEIGHTS)),
                *_norm_and_span(found.get(GRADIENT)),
            ]
        )
    return table(columns, rows)


def _norm_and_span(found: Statistics | None) -> list[str]:
    if found is None:
        return [text.NONE, text.NONE]
    strange = f" ({text.count(found.nonfinite)} not finite)" if found.nonfinite else ""
    return [text.number(found.norm), text.span(found.min, found.max) + strange]


def _overrides(report: ParameterReport) -> str:
    return text.options(report.overrides, text.in_order(report.overrides))


def _one(report: ParameterReport) -> list[RenderableType]:
    """One parameter: a column for each field, some side by side."""
    parameter, fields = report.parameter, report.fields
    about = f"{parameter.name}: {text.shape(parameter.shape)} {parameter.dtype}, {text.count(report.steps)} steps"
    ruled = [f"by rules: {_overrides(report)}"] if report.overrides else []
    shown: list[RenderableType] = [about, *ruled]
    for start in range(0, len(fields), SIDE_BY_SIDE):
        shown += [*([""] if start else []), _fields(fields[start : start + SIDE_BY_SIDE])]
    return shown


def _fields(reports: Sequence[FieldStatistics]) -> FittingTable:
    columns = [Column("", whole=True), *[Column(report.field, number=True) for report in reports]]
    fields = [report.statistics for report in reports]
    rows = [
        ["elements", *[text.count(field.count) for field in fields]],
        ["zeros", *[text.count(field.zeros) for field in fields]],
        ["not finite", *[text.count(field.nonfinite) for field in fields]],
        ["norm", *[text.number(field.norm) for field in fields]],
        ["mean", *[text.number(field.mean) for field in fields]],
        ["deviation", *[text.number(field.std) for field in fields]],
        ["min", *[text.number(field.min) for field in fields]],
        ["max", *[text.number(field.max) for field in fields]],
        ["min to max", *[text.histogram(field.histogram_counts) for field in fields]],
    ]
    return table(columns, rows)


def _numbers(reading: Reading | None) -> list[RenderableType]:
    if reading is None:
        return []
    columns = [Column("parameter"), Column("field"), Column("values")]
    rows = []
    for field in reading.fields:
        rest = field.count - len(field.numbers)
        more = f" and {text.count(rest)} more" if rest else ""
        rows.append([field.parameter, field.field, " ".join(f"{number:.6g}" for number in field.numbers) + more])
    return ["", f"values at version {text.count(reading.version.version)}", table(columns, rows)]
