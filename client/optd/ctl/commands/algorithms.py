"""What the server can compute: `algorithms`."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, facts, table
from optd.session.inquiry import find_algorithm
from optd_wire.values import AlgorithmInfo


def algorithms(
    invocation: Invocation,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this one, with all about its options.")
    ] = None,
) -> None:
    """List the server's algorithms, or the options of one: types, defaults, ranges."""
    found = invocation.server.ask(lambda server, left: server.list_algorithms(left))
    if name is None:
        invocation.answer(found, _overview(found))
        return
    wanted = find_algorithm(found, name)
    invocation.answer([wanted], *_one(wanted))


def _overview(found: Sequence[AlgorithmInfo]) -> FittingTable:
    return table(
        [Column("algorithm"), Column("options"), Column("state")],
        [
            [one.name, " ".join(option.name for option in one.options), " ".join(one.state) or text.NONE]
            for one in found
        ],
    )


def _one(algorithm: AlgorithmInfo) -> list[RenderableType]:
    about = [("algorithm", f"{algorithm.name} ({algorithm.title})"), ("state", ", ".join(algorithm.state) or "none")]
    if algorithm.package:
        about.append(("package", algorithm.package))
    rules = [("rule", rule) for rule in algorithm.rules]
    options = table(
        [Column("option"), Column("type"), Column("default"), Column("range"), Column("meaning")],
        [
            [option.name, option.kind, text.option(option.default_value), option.range or text.NONE, option.doc]
            for option in algorithm.options
        ],
    )
    return [facts([*about, *rules]), "", options]
