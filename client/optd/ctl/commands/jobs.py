"""Jobs: `jobs`, `delete`."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from optd.ctl import text
from optd.ctl.asking import confirm
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation
from optd.ctl.tables import Column, FittingTable, table
from optd_wire.errors import UnknownJob
from optd_wire.values import JobSummary


def jobs(invocation: Invocation) -> None:
    """List the jobs: algorithms, policy, version, size, workers."""
    found = invocation.server.ask(lambda server, left: server.list_jobs(left))
    if invocation.json or not found:
        invocation.answer(found, "no jobs")
        return
    # The listing has the algorithm of a job; several groups may have others.
    algorithms = [_algorithms(invocation, job) if job.groups > 1 else job.algorithm for job in found]
    invocation.answer(found, _table(found, algorithms, time.time()))


def _algorithms(invocation: Invocation, job: JobSummary) -> str:
    try:
        groups = invocation.server.ask(lambda server, left: server.list_groups(job.name, left))
    except UnknownJob:  # deleted since
        return job.algorithm
    return text.algorithms(job.algorithm, (group.options for group in groups))


def delete(
    invocation: Invocation,
    job: Job,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; a must without a terminal.")] = False,
) -> None:
    """Delete a job with its weights and state."""
    listed = invocation.server.ask(lambda server, left: server.list_jobs(left))
    found = next((summary for summary in listed if summary.name == job), None)
    if found is None:
        raise UnknownJob(job=job)
    if not yes:
        size = f"{text.counted(found.elements, 'element')}, {text.counted(found.workers, 'worker')}{_lost(found)}"
        question = f"Delete {found.name} at version {text.count(found.version.version)} ({size})"
        confirm(question, "delete", f"{found.name} was not deleted")
    # Not repeated: if the answer is lost, the name may belong to another job already.
    server = invocation.server
    gone = server.transport.delete_job(job, server.timeout)
    invocation.answer(gone, f"deleted {gone.name} at version {text.count(gone.version.version)}{_lost(gone)}")


def _lost(job: JobSummary) -> str:
    """What goes with a job that nobody has made a step of."""
    pending = job.gradients.accumulated
    return f", with gradients added up ({text.count(pending)}) that no step was made of" if pending else ""


def _table(found: tuple[JobSummary, ...], algorithms: Sequence[str], now: float) -> FittingTable:
    return table(
        [
            Column("job"),
            Column("algorithm"),
            Column("policy"),
            Column("version", number=True),
            Column("workers", number=True),
            Column("refused", number=True),
            Column("elements", number=True),
            Column("groups", number=True, spare=True),
            Column("durable", number=True, spare=True),
            Column("age", number=True, spare=True),
            Column("memory", number=True, spare=True),
            Column("pushes", number=True, spare=True),
            Column("parameters", number=True, spare=True),
            Column("ends", spare=True),
            Column("gradients", spare=True),
        ],
        [
            [
                job.name,
                algorithm,
                text.policy(job.policy),
                text.count(job.version.version) + (" failed" if job.failure else ""),
                text.count(job.workers),
                text.count(job.rejections),
                text.count(job.elements),
                text.count(job.groups),
                text.durable(job.version),
                text.duration(now - job.created_unix_ms / 1000) if job.created_unix_ms else text.NONE,
                text.size(job.planned_bytes),
                text.count(job.pushes),
                text.count(job.parameters),
                "with its workers" if job.ephemeral else text.NONE,
                text.gradients(job.gradients) or text.NONE,
            ]
            for job, algorithm in zip(found, algorithms, strict=True)
        ],
    )
