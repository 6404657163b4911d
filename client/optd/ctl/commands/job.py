"""One job: `job`."""

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
    """A job at a glance, its options as a whole, and the averages of its weights."""

    job: JobSummary
    options: JobOptions
    averages: tuple[AverageInfo, ...]


def job(invocation: Invocation, job: Job) -> None:
    """Show a job: its options as a whole, what has become of its gradients, and the averages that it keeps."""

    def attempt(server: ServerCalls, left: float) -> JobView:
        summary = next((found for found in server.list_jobs(left) if found.name == job), None)
        if summary is None:
            raise UnknownJob(job=job)
        info = server.get_job(job, left)
        return JobView(summary, info.options, info.averages)

    view = invocation.server.ask(attempt)
    invocation.answer(view, facts(_facts(view)))


def _facts(view: JobView) -> list[tuple[str, str]]:
    summary, options = view.job, view.options
    since = f"since version {text.count(options.since_version)}" if options.revision else "as it was created"
    return [
        ("job", f"{summary.name}  {summary.algorithm}  {text.policy(summary.policy)}"),
        ("version", text.count(summary.version.version) + (" failed" if summary.failure else "")),
        ("last step", text.moment(summary.stepped_unix_ms) if summary.stepped_unix_ms else text.NONE),
        ("ends", "with its workers" if summary.ephemeral else "when it is deleted"),
        ("size", f"{text.counted(summary.groups, 'group')}, {text.counted(summary.elements, 'element')}"),
        ("options", f"{text.options(options.options, options.options)}  ({since})"),
        ("gradients", text.gradients(summary.gradients) or text.NONE),
        ("averages", ", ".join(f"{each.name} of {text.count(each.updates)}" for each in view.averages) or text.NONE),
    ]
