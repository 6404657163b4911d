"""Changes of a group's options: `set`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from optd.ctl import text
from optd.ctl.assignments import parse
from optd.ctl.commands.arguments import Group, Job
from optd.ctl.connection import Connection
from optd.ctl.invocation import Invocation
from optd.group_options import GROUP_OPTIONS
from optd_wire.errors import OptionConflict, UnknownGroup
from optd_wire.values import GroupOptions, GroupUpdate, JobVersion, Options


@dataclass(frozen=True, slots=True)
class Change:
    """A group's options after a change and before it, and the job's version then."""

    options: GroupOptions
    previous: GroupOptions
    version: JobVersion


def set_options(
    invocation: Invocation,
    job: Job,
    group: Group,
    options: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="lr=0.001 betas=0.9,0.99 nesterov=true")
    ],
) -> None:
    """Change options of a group, from the next step on; the server checks the values."""
    wanted = parse(options)
    change = _change(invocation.server, job, group, wanted)
    invocation.answer(change, *_lines(job, change, wanted))


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
    where, since = f"{job} {change.options.group}", f"since version {text.count(change.options.since_version)}"
    return [
        f"{where}: {name} {text.option(before[name])} -> {text.option(after[name])}, {since}"
        if before[name] != after[name]
        else f"{where}: {name} is {text.option(after[name])} already"
        for name in wanted
    ]
