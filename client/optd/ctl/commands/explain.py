"""What goes on in a job, on one screen: `explain`."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from optd.ctl import rounds, text
from optd.ctl.advice import advice
from optd.ctl.commands.arguments import Job
from optd.ctl.commands.workers import process, taken_over
from optd.ctl.invocation import Invocation
from optd.ctl.policy_words import meaning
from optd.ctl.tables import facts
from optd.session.awaited import described
from optd.session.saying import lasted, listed
from optd.transport.server_calls import ServerCalls
from optd_wire.values import LEFT, JobReport, Rejection, WorkerInfo

RECENT_MS = 10 * 60 * 1000
"""How far back refusals are explained."""
SILENT_MS = 30 * 1000
"""How long after its last push a worker counts as lagging, while the job makes steps."""

Fact = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A job with its open rounds, what it has refused, and what its server keeps."""

    report: JobReport
    rejections: Mapping[str, int]
    recent: tuple[Rejection, ...]
    durability: str


def explain(invocation: Invocation, job: Job) -> None:
    """Explain in plain words what a job waits for, who lags or is lost, what was refused, and what to do about it."""

    def attempt(server: ServerCalls, left: float) -> Explanation:
        counts, recent = server.list_rejections(job, left)
        status = server.server_status(left)
        with closing(server.watch_job(job, 1.0)) as reports:
            return Explanation(next(reports), counts, recent, status.durability)

    found = invocation.server.ask(attempt)
    invocation.answer(found, facts(_facts(found)))


def _facts(found: Explanation) -> list[Fact]:
    report, job = found.report, found.report.job
    algorithms = text.algorithms(job.algorithm, (group.options for group in report.groups))
    return [
        ("job", f"{job.name}  {algorithms}  version {text.count(job.version.version)}"),
        *([("failed", job.failure)] if job.failure else []),
        ("policy", f"{text.policy(job.policy)}: {meaning(job.policy)}"),
        *rounds.facts(report.rounds),
        *_workers(report),
        *_rejections(found),
        ("durability", _durability(found)),
    ]


def _workers(report: JobReport) -> Iterator[Fact]:
    active = [worker for worker in report.workers if worker.active]
    names = listed([f"{worker.name} ({process(worker)})" for worker in active])
    yield "workers", f"{text.count(len(active))} with a lease: {names}" if active else "none holds a lease"
    gone = [worker for worker in report.workers if not worker.active]
    left = [worker.name for worker in gone if worker.ended == LEFT]
    lost = [worker for worker in gone if worker.ended != LEFT]
    if left:
        yield "left", listed(left)
    if lost:
        yield "lost", listed([described(worker, report.unix_ms) for worker in lost])
    for worker in active:
        for lag in _lags(worker, report, len(active)):
            yield "lags", f"{worker.name} {lag}"
        if takeover := taken_over(worker, report.unix_ms):
            yield "name", f"{worker.name} {takeover}; if two processes use it, give each a worker= of its own"


def _lags(worker: WorkerInfo, report: JobReport, active: int) -> Iterator[str]:
    now, heard = report.unix_ms, max(worker.last_push_unix_ms, worker.joined_unix_ms)
    if heard and report.job.stepped_unix_ms - heard > SILENT_MS:
        ago = f"{lasted((now - heard) / 1000)} ago"
        seen = f"last pushed {ago}" if worker.last_push_unix_ms else f"joined {ago} and has not pushed yet"
        yield f"{seen}, while others make steps"
    if worker.recent_staleness.p50 > 2 * active:
        yield f"pushes gradients that are old: {text.count(worker.recent_staleness.p50)} versions in the median"
    if worker.dropped_rounds:
        yield f"was not in {text.counted(worker.dropped_rounds, 'round')}, which closed without a push of it"


def _rejections(found: Explanation) -> Iterator[Fact]:
    now, total = found.report.unix_ms, sum(found.rejections.values())
    by_reason: dict[str, list[Rejection]] = {}
    for one in found.recent:
        if now - one.unix_ms <= RECENT_MS:
            by_reason.setdefault(one.reason, []).append(one)
    if not by_reason:
        yield "refused", f"nothing in the last 10 min; {text.count(total)} before" if total else "nothing"
    for reason, several in by_reason.items():
        last = several[-1]
        whose = listed(list(dict.fromkeys(one.worker for one in several if one.worker)))
        yield (
            "refused",
            f"{text.count(len(several))} {reason}{f' of {whose}' if whose else ''}, "
            f"the last {lasted((now - last.unix_ms) / 1000)} ago: {last.message}",
        )
        if advice(reason):
            yield "", f"to do: {advice(reason)}"


def _durability(found: Explanation) -> str:
    version = found.report.job.version
    if found.durability == "none":
        return "nothing is kept: the job ends with its server"
    behind = version.version - version.durable_version
    lag = f"{text.counted(behind, 'version')} behind" if behind else "all there is"
    return f"{found.durability}: version {text.count(version.durable_version)} survives a power cut, {lag}"
