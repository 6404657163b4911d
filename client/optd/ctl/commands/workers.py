"""Who takes part in a job, and what it has refused: `workers`, `rejections`."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType

from optd.ctl import text
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, table
from optd.session.awaited import ending_of
from optd.session.saying import lasted, listed
from optd_wire.values import REPLACED, Rejection, WorkerInfo

RECENT_SECONDS = 600.0
"""How long a takeover of a name is told."""


def workers(invocation: Invocation, job: Job) -> None:
    """List the workers that a job has seen: their leases, their pushes, and how those that are gone have ended."""
    found = invocation.server.ask(lambda server, left: server.list_workers(job, left))
    views = [view(found, found.unix_ms), *notes(found, found.unix_ms)] if found else ["no worker has joined yet"]
    invocation.answer(found, *views)


def view(found: Sequence[WorkerInfo], unix_ms: int, seconds_ago: float = 0.0) -> FittingTable:
    """The workers as they were so long ago, when the server's clock showed `unix_ms`, with times as of now."""
    columns = [
        Column("worker"),
        Column("lease"),
        Column("waits", number=True),
        Column("last push", number=True),
        Column("staleness\np50/p99/max", number=True),
        Column("refused", number=True),
        Column("dropped\nrounds", number=True),
        Column("epoch", number=True),
        Column("lane"),
        Column("host:pid"),
        Column("pushes", number=True, spare=True),
        Column("sequence", number=True, spare=True),
    ]
    now = unix_ms + int(seconds_ago * 1000)
    rows = [
        [
            worker.name,
            _lease(worker, now, seconds_ago),
            _since(worker.waiting_since_unix_ms, now) if worker.waiting else text.NONE,
            f"{_since(worker.last_push_unix_ms, now)} ago" if worker.last_push_unix_ms else text.NONE,
            _staleness(worker),
            text.count(worker.rejections),
            text.count(worker.dropped_rounds),
            text.count(worker.epoch),
            worker.lane.partition(" ")[0],
            process(worker),
            text.count(worker.pushes),
            text.count(worker.sequence),
        ]
        for worker in found
    ]
    return table(columns, rows)


def notes(found: Sequence[WorkerInfo], unix_ms: int) -> list[str]:
    """What of the workers finds no room in the table: refusals by reason, reasons for a lane, names taken over."""
    lines = [text.printable(line) for worker in found for line in _notes(worker, unix_ms)]
    return ["", *lines] if lines else []


def _notes(worker: WorkerInfo, unix_ms: int) -> Iterator[str]:
    if worker.rejections_by_reason:
        often = sorted(worker.rejections_by_reason.items(), key=lambda item: (-item[1], item[0]))
        yield f"{worker.name}: refused {listed([f'{text.count(number)} {reason}' for reason, number in often])}"
    if " " in worker.lane:
        lane, _, why = worker.lane.partition(" ")
        yield f"{worker.name}: lane {lane} {why}"
    if takeover := taken_over(worker, unix_ms):
        yield f"{worker.name}: {takeover}"


def taken_over(worker: WorkerInfo, unix_ms: int) -> str:
    """How a worker has got its name, if another process had it until lately; else empty."""
    seconds = (unix_ms - worker.ended_unix_ms) / 1000
    if not worker.active or worker.ended != REPLACED or seconds > RECENT_SECONDS:
        return ""
    return f"took its name over {lasted(seconds)} ago from a process that still held it"


def process(worker: WorkerInfo) -> str:
    """`host:pid`; `-` if the server does not know it."""
    return f"{worker.host}:{worker.pid}" if worker.host or worker.pid else text.NONE


def _lease(worker: WorkerInfo, now: int, seconds_ago: float) -> str:
    if not worker.active:
        return ending_of(worker, now)
    return f"{max(0.0, worker.lease_remaining_ms / 1000 - seconds_ago):.1f} s"


def _since(then_ms: int, now_ms: int) -> str:
    return lasted((now_ms - then_ms) / 1000)


def _staleness(worker: WorkerInfo) -> str:
    recent = worker.recent_staleness
    return f"{recent.p50}/{recent.p99}/{recent.max}" if worker.last_push_unix_ms else text.NONE


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
