"""The groups of a job: `groups`."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, table
from optd.options.group_options import GROUP_OPTIONS
from optd_wire.values import GroupSummary, Options

SPARED = ("parameters", "elements", "dtype")
"""What gives way to options where there is little room."""


def groups(invocation: Invocation, job: Job) -> None:
    """List the groups of a job with their algorithms if these differ, options and steps."""
    found = invocation.server.ask(lambda server, left: server.list_groups(job, left))
    invocation.answer(found, *views(found))


def views(found: Sequence[GroupSummary]) -> list[RenderableType]:
    """The groups with `lr` and all options that differ between them, or have a schedule; below, the others.

    An option that only some of the groups' algorithms have counts as one that differs.
    Where there is no room for a column for each of these, one column has them by name.
    """
    names = text.in_order(dict.fromkeys(name for group in found for name in group.options.options))
    apart = [name for name in names if name != "lr" and (_differs(found, name) or _moves(found, name))]
    same = [name for name in names if name not in apart and name != "lr"]
    algorithms = len({group.options.algorithm for group in found}) > 1
    columns = [
        Column("#", number=True),
        Column("group"),
        *([Column("algorithm")] if algorithms else []),
        Column("parameters", number=True),
        Column("elements", number=True),
        Column("dtype", spare=True),
        Column("steps", number=True),
    ]
    if "lr" in names:
        columns.append(Column("lr", number=True))
    rows = [
        [
            str(group.index),
            group.options.group,
            *([group.options.algorithm] if algorithms else []),
            text.count(group.parameters),
            text.count(group.elements),
            ",".join(group.dtypes),
            text.steps(group.min_steps, group.max_steps),
            *([_value(group, "lr")] if "lr" in names else []),
        ]
        for group in found
    ]
    wide = [[*row, *[_value(group, name) for name in apart]] for row, group in zip(rows, found, strict=True)]
    narrow = [
        [*row, " ".join(f"{name}={_value(group, name)}" for name in apart if _is_set(group, name))]
        for row, group in zip(rows, found, strict=True)
    ]
    sparing = [replace(column, spare=column.title in SPARED) for column in columns]
    by_name = table([*sparing, Column("options that differ")], narrow) if apart else None
    shown = table([*columns, *[Column(name, number=True) for name in apart]], wide, narrow=by_name)
    below = "in all groups: " if len(found) > 1 else "also: "
    return [shown, *([below + text.options(_options(found[0]), same)] if same else [])]


def _is_set(group: GroupSummary, name: str) -> bool:
    return name in group.options.options


def _options(group: GroupSummary) -> Options:
    """With those that every group has and that are told where they are not at their default."""
    return {**GROUP_OPTIONS, **group.options.options}


def _differs(found: Sequence[GroupSummary], name: str) -> bool:
    having = [_options(group)[name] for group in found if name in _options(group)]
    return len(having) < len(found) or any(value != having[0] for value in having)


def _moves(found: Sequence[GroupSummary], name: str) -> bool:
    """Whether schedules make something else of an option now."""
    return any(name in group.effective for group in found)


def _value(group: GroupSummary, name: str) -> str:
    """An option in six digits, with what a schedule makes of it now; a dash if the group's algorithm lacks it."""
    if name not in _options(group):
        return text.NONE
    value = text.shortened(_options(group)[name])
    return f"{value} now {text.shortened(group.effective[name])}" if name in group.effective else value
