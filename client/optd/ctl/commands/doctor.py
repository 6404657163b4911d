"""What a stopped server has on its disk: `doctor`.

The server's own code looks at the files, in a process of its own; see `optd_server/doctor`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from optd.ctl import output, text
from optd.ctl.asking import confirm
from optd.ctl.exits import BadUsage, Exit
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, table

Document = dict[str, Any]
_HEADINGS = {
    "good": "good",
    "torn": "good, with a torn tail",
    "empty": "nothing there yet",
    "damaged": "damaged, and nothing is lost",
    "lost": "DAMAGED, and not recovered",
}
"""How a job is, by its state."""


def doctor(
    invocation: Invocation,
    data_dir: Annotated[Path, typer.Argument(metavar="DATA_DIR", help="The --data-dir of a server that is stopped.")],
    repair: Annotated[bool, typer.Option("--repair", help="Cut off torn tails, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; a must without a terminal.")] = False,
) -> None:
    """Check the data directory of a stopped server, and say what it would recover.

    Verifies all checksums, and names file and offset of any damage. Changes nothing without --repair.
    """
    if repair and not yes and not sys.stdin.isatty():
        raise BadUsage("there is no terminal to ask on: pass --yes to repair")
    found, code = _examine(data_dir)
    torn = [job["torn"] for job in found["jobs"] if job["torn"]]
    if repair and torn:
        if not yes:
            _confirm(torn)
        found, code = _examine(data_dir, "--repair")
    invocation.answer(found, *_views(found))
    raise typer.Exit(code)


def _examine(data_dir: Path, *flags: str) -> tuple[Document, int]:
    """Run the examination; return what it found, and its exit status."""
    command = [sys.executable, "-m", "optd_server.doctor", *flags, "--", str(data_dir)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.stdout:
        return json.loads(ended.stdout), ended.returncode
    last = ended.stderr.strip().splitlines()[-1:] or [f"the examination ended with status {ended.returncode}"]
    output.complain(last[0])
    raise typer.Exit(ended.returncode if ended.returncode in (Exit.REFUSED, Exit.USAGE) else Exit.REFUSED)


def _confirm(torn: list[Document]) -> None:
    for each in torn:
        sys.stderr.write(
            f"{text.printable(each['path'])} ends at byte {each['offset']} in {text.counted(each['bytes'], 'byte')} of "
            "an event that was not finished.\n"
        )
    confirm("Cut them off", "repair", "nothing was cut off")


# For people


def _views(found: Document) -> Iterator[RenderableType]:
    jobs = found["jobs"]
    yield f"{text.printable(found['path'])}: {text.counted(len(jobs), 'job')}, format {found['format']}"
    for job in jobs:
        yield ""
        yield f"{text.printable(job['job'])}: {_HEADINGS[job['state']]}"
        yield from (f"  {text.printable(line)}" for line in _outcome(job))
        if job["snapshots"] or job["segments"]:
            yield _files(job)
            damaged = [each["problem"] for each in (*job["snapshots"], *job["segments"]) if each["problem"]]
            known = job["why"]
            yield from (f"  {text.printable(_damage(each))}" for each in damaged if each["path"] not in known)
    yield ""
    yield from (text.printable(line) for line in _conclusions(found))


def _outcome(job: Document) -> Iterator[str]:
    """What a server would make of a job."""
    if job["state"] == "empty":
        yield "the server ended before the job was durable, and nobody was told that there is one"
    elif job["version"] is None:
        yield f"nothing is recovered: {job['why']}"
    else:
        yield f"is recovered at version {text.count(job['version'])}: {_sources(job)}"
    if job["torn"]:
        torn = text.counted(job["torn"]["bytes"], "byte")
        yield f"{torn} behind the last event are cut off: of an unfinished one, which nobody was told of"
    if job["unlogged"]:
        yield "the last server wrote no log and did not end in order: steps behind this version are lost"
    if job["leftovers"]:
        yield f"{text.counted(len(job['leftovers']), 'unfinished snapshot')}, which a server removes"


def _sources(job: Document) -> str:
    if job["snapshot_version"] is None:
        return f"{text.counted(job['replayed'], 'event')} of the log"
    snapshot = f"the snapshot of version {text.count(job['snapshot_version'])}"
    return f"{snapshot}, and {text.counted(job['replayed'], 'event')} behind it" if job["replayed"] else snapshot


def _files(job: Document) -> FittingTable:
    columns = [
        Column("  what"),
        Column("version", number=True),
        Column("events", number=True),
        Column("size", number=True),
        Column("state", whole=True),
        Column("file"),
    ]
    rows = [
        [
            "  snapshot" if "event" in each else "  log",
            text.count(each["version"]),
            _events(each),
            text.size(each["bytes"]),
            "DAMAGED" if each["problem"] else "torn" if each.get("torn_bytes") else "good",
            str(Path(each["path"]).relative_to(job["path"])),
        ]
        for each in (*job["snapshots"], *job["segments"])
    ]
    return table(columns, rows)


def _events(found: Document) -> str:
    """Which events are in a snapshot or in a segment."""
    if "event" in found:
        return f"to {found['event']}"
    first, last = found["first_event"], found["last_event"]
    return f"{first} to {last}" if last >= first else text.NONE


def _damage(found: Document) -> str:
    return f"DAMAGED: {found['path']} at byte {found['offset']}: {found['problem']}"


def _conclusions(found: Document) -> Iterator[str]:
    for cut in found["cut"]:
        yield f"Cut {text.counted(cut['bytes'], 'byte')} off {cut['path']} at byte {cut['offset']}."
    for problem in found["problems"]:
        yield _damage(problem)
    states = [job["state"] for job in found["jobs"]]
    lost = [job["job"] for job in found["jobs"] if job["state"] == "lost"]
    if found["problems"]:
        yield "A server does not start on this directory."
    elif lost:
        yield f"A server does not start on this directory, unless with --recover skip; then without {', '.join(lost)}."
    elif "damaged" in states:
        yield "Something is damaged, and nothing is lost: a server recovers every job."
    elif "torn" in states:
        yield "Nothing is damaged. A server cuts off the torn tail when it starts, and --repair does it now."
    else:
        yield "Nothing is damaged."
