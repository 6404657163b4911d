"""What the server can compute: `algorithms`."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated

import typer
from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, facts, table
from optd.session.inquiry import find_algorithm
from optd.transport.requests import AlgorithmList
from optd_wire.values import AlgorithmInfo, OptionInfo

_COLUMNS = (
    Column("option", whole=True),
    Column("type", whole=True),
    Column("default", whole=True),
    Column("range"),
    Column("meaning"),
)


def algorithms(
    invocation: Invocation,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show one algorithm with all options that its jobs have.")
    ] = None,
) -> None:
    """List the server's algorithms, or every option that a job of one has: types, defaults, ranges, meanings."""
    found = invocation.server.ask(lambda server, left: server.list_algorithms(left))
    if name is None:
        invocation.answer(tuple(found), _overview(found))
        return
    wanted = find_algorithm(found, name)
    options = {"group_options": found.group_options, "job_options": found.job_options}
    document = {field.name: getattr(wanted, field.name) for field in fields(wanted)} | options
    invocation.answer([document], *_one(wanted, found))


def _overview(found: Sequence[AlgorithmInfo]) -> FittingTable:
    return table(
        [Column("algorithm"), Column("options"), Column("state")],
        [
            [one.name, " ".join(option.name for option in one.options), " ".join(one.state) or text.NONE]
            for one in found
        ],
    )


def _one(algorithm: AlgorithmInfo, found: AlgorithmList) -> list[RenderableType]:
    about = [("algorithm", f"{algorithm.name} ({algorithm.title})"), ("state", ", ".join(algorithm.state) or "none")]
    if algorithm.doc:
        about.append(("about", algorithm.doc))
    if algorithm.package:
        about.append(("package", algorithm.package))
    rules = [("rule", rule) for rule in algorithm.rules]
    return [
        facts([*about, *rules]),
        "",
        _options(algorithm.options),
        "",
        "Every group has these too, whatever its algorithm: optctl set JOB GROUP OPTION=VALUE",
        "",
        _options(found.group_options),
        "",
        "The job as a whole has these: optctl set JOB OPTION=VALUE",
        "",
        _options(found.job_options),
    ]


def _options(declared: Sequence[OptionInfo]) -> FittingTable:
    rows = [[one.name, one.kind, text.option(one.default_value), _range(one), one.doc] for one in declared]
    return table(_COLUMNS, rows)


def _range(option: OptionInfo) -> str:
    """The numbers or texts that an option may be; `or none` if it may be left unset."""
    allowed = ", ".join(option.choices) or option.range
    if not allowed:
        return text.NONE
    return f"{allowed} or {text.option(None)}" if option.nullable else allowed
