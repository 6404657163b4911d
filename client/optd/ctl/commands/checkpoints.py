"""Checkpoints: `checkpoint save|ls|show|verify|restore|export|import|rm`."""

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from optd.checkpoints import files, transfer
from optd.checkpoints.files import CheckpointInfo, StoredGroup
from optd.checkpoints.place import Place, place_of
from optd.ctl import text
from optd.ctl.asking import confirm
from optd.ctl.commands.arguments import Job
from optd.ctl.exits import BadUsage
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, facts, table
from optd.state.restore import load_into
from optd_wire.errors import CheckpointExists, InvalidRequest

Path_ = Annotated[
    str,
    typer.Argument(metavar="PATH", help="A folder, or a URL such as s3://bucket/best.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint that is there.")]
Torch = Annotated[Path, typer.Option("--torch", metavar="FILE", help="A file of torch.save().", show_default=False)]
Version = Annotated[int | None, typer.Option("--version", help="One of `checkpoint ls --job`; default: as it is now.")]


def save(invocation: Invocation, job: Job, path: Path_, version: Version = None, overwrite: Overwrite = False) -> None:
    """Write a checkpoint of a job; steps go on meanwhile."""
    server = invocation.server
    seconds = invocation.settings.timeout or transfer.SAVE_SECONDS
    saved = transfer.save(server.transport, job, _place(path), seconds, version=version, overwrite=overwrite)
    invocation.answer(
        saved, f"saved {saved.job} at version {text.count(saved.version)} ({text.size(saved.bytes)}) to {path}"
    )


def ls(
    invocation: Invocation,
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="A folder of checkpoints.", show_default=False)
    ] = None,
    job: Annotated[str | None, typer.Option("--job", help="List the server's own snapshots of this job.")] = None,
) -> None:
    """List the checkpoints in a folder, or the snapshots of a job that the server has on its disk."""
    if (path is None) == (job is None):
        raise BadUsage("give a PATH to list the checkpoints in it, or --job to list the snapshots of a job")
    if job is not None:
        kept = invocation.server.ask(lambda server, left: server.list_snapshots(job, left))
        columns = [Column("version", number=True), Column("written"), Column("bytes", number=True)]
        rows = [[text.count(each.version), text.moment(each.written_unix_ms), text.size(each.bytes)] for each in kept]
        invocation.answer(kept, table(columns, rows) if rows else "no snapshots yet")
        return
    place = _place(str(path))
    found = [files.read_info(each) for each in ([place] if place.is_there() else place.children())]
    invocation.answer(found, _table(found) if found else f"no checkpoints in {path}")


def show(invocation: Invocation, path: Path_) -> None:
    """Show what is in a checkpoint: its job, groups, options and parameters."""
    info = files.read_info(_place(path))
    invocation.answer(info, facts(_facts(info)), "", _groups(info))


def verify(invocation: Invocation, path: Path_) -> None:
    """Compare the files of a checkpoint with their checksums."""
    info = files.verify(_place(path))
    count = len(info.files) + 1
    invocation.answer(info, f"{path} is whole: {text.counted(count, 'file')}, {text.size(info.bytes)}")


def restore(
    invocation: Invocation,
    path: Path_,
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="The name of the job; default: that it had.", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Delete a job of that name first.")] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Keep the job with its options; load weights and state by name.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="With --load: load what fits, and list the rest.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --replace: do not ask; a must without a terminal.")
    ] = False,
) -> None:
    """Create a job from a checkpoint, which goes on exactly where it was; or load one into a job that there is."""
    if replace and load:
        raise BadUsage("--replace and --load exclude one another")
    seconds = invocation.settings.timeout or transfer.SAVE_SECONDS
    place = _place(path)
    if load:
        with invocation.session(job or files.read_info(place).job, worker="optctl") as session:
            info = load_into(session, place, partial=partial)
        did = "loaded"
    else:
        if partial:
            raise BadUsage("--partial needs --load: otherwise everything is restored")
        if replace and not yes:
            name = job or files.read_info(place).job
            confirm(
                f"Delete {name}, if there is such a job, and restore it from {path}", "replace", "nothing was restored"
            )
        info = transfer.restore(invocation.server.transport, place, seconds, job=job, replace=replace)
        did = "restored"
    invocation.answer(info, f"{did} {info.name} at version {text.count(info.version.version)} from {path}")


def export(invocation: Invocation, path: Path_, torch: Torch, overwrite: Overwrite = False) -> None:
    """Write a checkpoint as a file that torch.load() and torch's own optimizer accept."""
    if torch.exists() and not overwrite:
        raise CheckpointExists(place=str(torch), what="a file already, which --overwrite replaces")
    _convert(invocation, "export", path, str(torch))


def import_(
    invocation: Invocation,
    path: Path_,
    torch: Torch,
    algorithm: Annotated[
        str, typer.Option("--algorithm", help="The optimizer that saved it, such as adamw.", show_default=False)
    ],
    job: Annotated[str, typer.Option("--job", help="The job's name in the checkpoint.")] = "imported",
    overwrite: Overwrite = False,
) -> None:
    """Make a checkpoint of a file with {"model": state dict, "optimizer": state dict}."""
    more = ["--overwrite"] if overwrite else []
    _convert(invocation, "import", str(torch), path, "--algorithm", algorithm, "--job", job, *more)


def rm(
    invocation: Invocation,
    path: Path_,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; a must without a terminal.")] = False,
) -> None:
    """Remove a checkpoint."""
    place = _place(path)
    info = files.read_info(place)
    if not yes:
        question = f"Remove the checkpoint of {info.job} at version {text.count(info.version)} in {path}"
        confirm(question, "remove", f"{path} was not removed")
    place.remove()
    invocation.answer(info, f"removed {path}")


def _place(path: str) -> Place:
    if path.startswith("memory://"):
        raise BadUsage(f"{path} is memory of this command, which ends with it")
    try:
        return place_of(path)
    except InvalidRequest as error:
        raise BadUsage(str(error)) from None


def _convert(invocation: Invocation, *command: str) -> None:
    """Runs the part that needs torch, in a process of its own: optctl does not import torch."""
    if find_spec("torch") is None:
        raise BadUsage("this needs torch: pip install 'optd[torch]'")
    done = subprocess.run(
        [sys.executable, "-m", "optd.torch.checkpoint_file", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise InvalidRequest(problem=lines[-1])
    invocation.answer({"told": done.stdout.strip()}, done.stdout.strip())


def _table(found: list[CheckpointInfo]) -> FittingTable:
    newest = max(found, key=lambda each: (each.stepped_unix_ms, each.version))
    return table(
        [
            Column("checkpoint"),
            Column("job"),
            Column("version", number=True),
            Column("last step"),
            Column("bytes", number=True),
            Column("algorithm", spare=True),
            Column(""),
        ],
        [
            [
                each.path,
                each.job,
                text.count(each.version),
                text.moment(each.stepped_unix_ms) if each.stepped_unix_ms else text.NONE,
                text.size(each.bytes),
                each.algorithm,
                "latest" if each is newest else "",
            ]
            for each in found
        ],
    )


def _facts(info: CheckpointInfo) -> list[tuple[str, str]]:
    return [
        ("checkpoint", info.path),
        ("job", info.job),
        ("version", text.count(info.version)),
        ("last step", text.moment(info.stepped_unix_ms) if info.stepped_unix_ms else text.NONE),
        ("algorithm", info.algorithm),
        ("bytes", text.size(info.bytes)),
        ("files", ", ".join(sorted(info.files))),
    ]


def _groups(info: CheckpointInfo) -> FittingTable:
    return table(
        [
            Column("group"),
            Column("algorithm"),
            Column("parameters", number=True),
            Column("elements", number=True),
            Column("steps", number=True),
            Column("options"),
        ],
        [[*_row(group)] for group in info.groups],
    )


def _row(group: StoredGroup) -> list[str]:
    steps = [each.steps for each in group.parameters]
    elements = sum(math.prod(each.shape) for each in group.parameters)
    low, high = min(steps, default=0), max(steps, default=0)
    return [
        group.name,
        group.algorithm,
        text.count(len(group.parameters)),
        text.count(elements),
        text.count(low) if low == high else f"{text.count(low)} .. {text.count(high)}",
        text.options(group.options, text.in_order(group.options)),
    ]
