"""One job: `job`."""

from collections.abc import Mapping
from dataclasses import dataclass

from optd.ctl import text
from optd.ctl.commands.arguments import Job
from optd.ctl.invocation import Invocation
from optd.ctl.tables import facts
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import UnknownJob
from optd_wire.values import AverageInfo, JobOptions, JobSummary


@dataclass(frozen=True, slots=True)
class JobView:
    """A job at a glance, its options as a whole, the averages of its weights, and the algorithm of each group."""

    job: JobSummary
    options: JobOptions
    averages: tuple[AverageInfo, ...]
    algorithms: Mapping[str, str]


def job(invocation: Invocation, job: Job) -> None:
    """Show a job: its options as a whole, its algorithms, its gradients, and the averages that it keeps."""

    def attempt(server: ServerCalls, left: float) -> JobView:
        summary = next((found for found in server.list_jobs(left) if found.name == job), None)
        if summary is None:
            raise UnknownJob(job=job)
        info = server.get_job(job, left)
        algorithms = {group.options.group: group.options.algorithm for group in info.groups}
        return JobView(summary, info.options, info.averages, algorithms)

    view = invocation.server.ask(attempt)
    invocation.answer(view, facts(_facts(view)))


def _algorithms(view: JobView) -> str:
    """The job's algorithm; if groups have others, each algorithm with its groups: `muon (matrices), adamw (rest)`."""
    names = dict.fromkeys(view.algorithms.values())
    if len(names) < 2:
        return next(iter(names), view.job.algorithm)
    groups = {name: [group for group, own in view.algorithms.items() if own == name] for name in names}
    return ", ".join(f"{name} ({', '.join(groups[name])})" for name in names)


def _facts(view: JobView) -> list[tuple[str, str]]:
    summary, options = view.job, view.options
    since = f"since version {text.count(options.since_version)}" if options.revision else "as it was created"
    return [
        ("job", f"{summary.name}  {_algorithms(view)}  {text.policy(summary.policy)}"),
        ("version", text.count(summary.version.version) + (" failed" if summary.failure else "")),
        ("durable", text.durable(summary.version)),
        ("last step", text.moment(summary.stepped_unix_ms) if summary.stepped_unix_ms else text.NONE),
        ("ends", "with its workers" if summary.ephemeral else "when it is deleted"),
        ("size", f"{text.counted(summary.groups, 'group')}, {text.counted(summary.elements, 'element')}"),
        ("options", f"{text.options(options.options, options.options)}  ({since})"),
        ("gradients", text.gradients(summary.gradients) or text.NONE),
        ("averages", ", ".join(f"{each.name} of {text.count(each.updates)}" for each in view.averages) or text.NONE),
    ]
