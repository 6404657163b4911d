"""Back to an earlier version of a job: `rollback`."""

from typing import Annotated

import typer

from optd.ctl import text
from optd.ctl.asking import confirm
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation

ROLLBACK_SECONDS = 600.0
"""How long the server may load, unless --timeout says so."""


def rollback(
    invocation: Invocation,
    job: Job,
    version: Annotated[
        int, typer.Argument(metavar="VERSION", help="One of `checkpoint ls --job`.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; a must without a terminal.")] = False,
) -> None:
    """Make a job what it was at a version that the server has on its disk; its workers go on from there."""
    server = invocation.server
    now = server.ask(lambda transport, left: transport.get_job(job, left)).version.version
    if not yes:
        lost = text.counted(max(0, now - version), "step")
        question = f"Roll {job} back from version {text.count(now)} to {text.count(version)} ({lost} are lost)"
        confirm(question, "roll back", f"{job} was not rolled back")
    seconds = invocation.settings.timeout or ROLLBACK_SECONDS
    at = server.transport.roll_back_job(job, version, seconds)  # not repeated: steps may have followed
    invocation.answer(at, f"rolled {job} back from version {text.count(now)} to {text.count(at.version)}")
