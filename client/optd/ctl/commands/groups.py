"""The groups of a job: `groups`."""

from collections.abc import Sequence

from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, table
from optd_wire.values import GroupSummary


def groups(invocation: Invocation, job: Job) -> None:
    """List the groups of a job with their options and steps."""
    found = invocation.server.ask(lambda server, left: server.list_groups(job, left))
    invocation.answer(found, *views(found))


def views(found: Sequence[GroupSummary]) -> list[RenderableType]:
    """The groups with `lr` and all options that differ between them; below, the options that do not."""
    names = text.in_order(dict.fromkeys(name for group in found for name in group.options.options))
    apart = [name for name in names if name == "lr" or _differs(found, name)]
    same = [name for name in names if name not in apart]
    columns = [
        Column("#", number=True),
        Column("group"),
        Column("parameters", number=True),
        Column("elements", number=True),
        Column("dtype", spare=True),
        Column("steps", number=True),
        *[Column(name, number=True) for name in apart],
    ]
    rows = [
        [
            str(group.index),
            group.options.group,
            text.count(group.parameters),
            text.count(group.elements),
            ",".join(group.dtypes),
            text.steps(group.min_steps, group.max_steps),
            *[_value(group, name) for name in apart],
        ]
        for group in found
    ]
    below = "in all groups: " if len(found) > 1 else "also: "
    return [table(columns, rows), *([below + text.options(found[0].options.options, same)] if same else [])]


def _differs(found: Sequence[GroupSummary], name: str) -> bool:
    return any(group.options.options.get(name) != found[0].options.options.get(name) for group in found)


def _value(group: GroupSummary, name: str) -> str:
    """An option, with what a schedule makes of it now."""
    value = text.option(group.options.options.get(name))
    return f"{value} now {text.option(group.effective[name])}" if name in group.effective else value
