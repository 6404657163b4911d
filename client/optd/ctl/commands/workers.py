"""Who takes part in a job, and what it has refused: `workers`, `rejections`."""

from collections.abc import Mapping, Sequence

from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, table
from optd_wire.values import Rejection, WorkerInfo


def workers(invocation: Invocation, job: Job) -> None:
    """List the workers that a job has seen, with their leases."""
    found = invocation.server.ask(lambda server, left: server.list_workers(job, left))
    invocation.answer(found, view(found) if found else "no worker has joined yet")


def view(found: Sequence[WorkerInfo], seconds_ago: float = 0.0) -> FittingTable:
    """The workers as they were so long ago, with what is left of their leases now."""
    columns = [
        Column("worker"),
        Column("lease", number=True),
        Column("waits"),
        Column("pushes", number=True),
        Column("refused", number=True),
        Column("staleness", number=True),
        Column("sequence", number=True, spare=True),
        Column("epoch", number=True, spare=True),
        Column("lane", spare=True),
    ]
    rows = [
        [
            worker.name,
            f"{max(0.0, worker.lease_remaining_ms / 1000 - seconds_ago):.1f} s" if worker.active else "ended",
            text.yes(worker.waiting),
            text.count(worker.pushes),
            text.count(worker.rejections),
            text.count(worker.staleness),
            text.count(worker.sequence),
            text.count(worker.epoch),
            worker.lane,
        ]
        for worker in found
    ]
    return table(columns, rows)


def rejections(invocation: Invocation, job: Job) -> None:
    """Show which pushes and changes a job has refused, and why."""
    counts, recent = invocation.server.ask(lambda server, left: server.list_rejections(job, left))
    invocation.answer({"counts": counts, "recent": recent}, *(_rejections(counts, recent) or ["nothing was refused"]))


def _rejections(counts: Mapping[str, int], recent: Sequence[Rejection]) -> list[RenderableType]:
    if not counts:
        return []
    often = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    last = table(
        [Column("time", whole=True), Column("version", number=True), Column("worker"), Column("message")],
        [[text.moment(one.unix_ms), text.count(one.version), one.worker or text.NONE, one.message] for one in recent],
    )
    return [
        table([Column("reason"), Column("refused", number=True)], [[name, text.count(n)] for name, n in often]),
        "",
        last,
    ]
