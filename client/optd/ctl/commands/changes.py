"""Changes of options of a group, or of a job as a whole: `set` makes one, `changes` lists them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.assignments import parse
from optd.ctl.commands.arguments import Job
from optd.ctl.connection import Connection
from optd.ctl.exits import BadUsage
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, table
from optd.options.group_options import GROUP_OPTIONS
from optd_wire.errors import JobOptionConflict, OptionConflict, UnknownGroup
from optd_wire.values import GroupOptions, GroupUpdate, JobOptions, JobUpdate, JobVersion, OptionChange, Options


@dataclass(frozen=True, slots=True)
class Change:
    """A group's options after a change and before it, and the job's version then."""

    options: GroupOptions
    previous: GroupOptions
    version: JobVersion


@dataclass(frozen=True, slots=True)
class JobChange:
    """As `Change`, of the job as a whole."""

    options: JobOptions
    previous: JobOptions
    version: JobVersion


def set_options(
    invocation: Invocation,
    job: Job,
    options: Annotated[
        list[str],
        typer.Argument(
            metavar="[GROUP] NAME=VALUE...",
            help="The group's name, and options of the group's algorithm: lr=0.001 betas=0.9,0.99 nesterov=true; "
            "without a group options of the whole job: clip_norm=1",
        ),
    ],
) -> None:
    """Change options of a group, or of the job as a whole, from the next step on; the server checks the values."""
    group = options[0] if _is_group(invocation.server, job, options[0]) else None
    wanted = parse(options if group is None else options[1:])
    if not wanted:
        raise BadUsage("nothing to set: NAME=VALUE is missing, such as lr=0.001")
    if group is None:
        of_job = _change_job(invocation.server, job, wanted)
        invocation.answer(of_job, *_job_lines(job, of_job, wanted))
    else:
        change = _change(invocation.server, job, group, wanted)
        invocation.answer(change, *_lines(job, change, wanted))


def _is_group(server: Connection, job: str, word: str) -> bool:
    """Whether the first word is a group: what sets no option, or is the name of one all the same."""
    if "=" not in word:
        return True
    info = server.ask(lambda connected, left: connected.get_job(job, left))
    return any(group.options.group == word for group in info.groups)


def changes(
    invocation: Invocation,
    job: Job,
    group: Annotated[str, typer.Argument(metavar="[GROUP]", help="Only those of this group.")] = "",
) -> None:
    """List which options have changed since the job was created: from which version on, from what, to what, by whom."""
    found = invocation.server.ask(lambda server, left: server.list_option_changes(job, group, left))
    shown: list[RenderableType] = [_table(found)] if found else ["no option has changed since the job was created"]
    if found.forgotten:
        some = f"{text.counted(found.forgotten, 'older change')} not shown: the server keeps the last ones"
        shown.append(f"{some}, and of each option its last one")
    invocation.answer({"changes": tuple(found), "forgotten": found.forgotten}, *shown)


def _table(found: Sequence[OptionChange]) -> FittingTable:
    columns = [
        Column("time", whole=True, spare=True),
        Column("version", number=True),
        Column("group"),
        Column("option", whole=True),
        Column("before"),
        Column("after"),
        Column("with a push of"),
    ]
    rows = [
        [
            text.moment(one.unix_ms),
            text.count(one.version),
            one.group or "(job)",
            one.option,
            text.shortened(one.before),
            text.shortened(one.after),
            one.worker or text.NONE,
        ]
        for one in found
    ]
    return table(columns, rows)


def _change_job(server: Connection, job: str, wanted: Options) -> JobChange:
    """As `_change`, of the job as a whole."""
    deadline = time.monotonic() + server.timeout
    while True:
        previous = server.ask(lambda transport, left: transport.get_job(job, left)).options
        update = JobUpdate(job, wanted, previous.revision)
        try:
            options, version = server.ask(lambda transport, left: transport.update_job(update, left))  # noqa: B023
        except JobOptionConflict:
            if time.monotonic() > deadline:
                raise
            continue
        return JobChange(options, previous, version)


def _change(server: Connection, job: str, group: str, wanted: Options) -> Change:
    """Makes the change on what was read, so that the values before it are the ones that it replaced.

    Where somebody else is faster, a learning rate schedule for one, reads and tries again.
    """
    deadline = time.monotonic() + server.timeout
    while True:
        previous = _read(server, job, group)
        update = GroupUpdate(group, wanted, previous.revision)
        try:
            options, version = server.ask(lambda transport, left: transport.update_group(job, update, left))  # noqa: B023
        except OptionConflict:
            if time.monotonic() > deadline:
                raise
            continue
        return Change(options, previous, version)


def _read(server: Connection, job: str, group: str) -> GroupOptions:
    groups = server.ask(lambda transport, left: transport.list_groups(job, left))
    for summary in groups:
        if summary.options.group == group:
            return summary.options
    raise UnknownGroup(job=job, group=group, groups=", ".join(summary.options.group for summary in groups))


def _lines(job: str, change: Change, wanted: Mapping[str, object]) -> list[str]:
    before, after = ({**GROUP_OPTIONS, **each.options} for each in (change.previous, change.options))
    return _differences(f"{job} {change.options.group}", before, after, change.options.since_version, wanted)


def _job_lines(job: str, change: JobChange, wanted: Mapping[str, object]) -> list[str]:
    before, after = change.previous.options, change.options.options
    return _differences(job, before, after, change.options.since_version, wanted)


def _differences(
    where: str, before: Options, after: Options, since_version: int, wanted: Mapping[str, object]
) -> list[str]:
    since = f"since version {text.count(since_version)}"
    return [
        f"{where}: {name} {text.option(before[name])} -> {text.option(after[name])}, {since}"
        if before[name] != after[name]
        else f"{where}: {name} is {text.option(after[name])} already"
        for name in wanted
    ]
