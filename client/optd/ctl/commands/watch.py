"""A job as it moves: `watch`."""

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Annotated

import typer
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.live import Live

from optd.ctl import output, rounds, text
from optd.ctl.commands import groups, workers
from optd.ctl.commands.arguments import Job
from optd.ctl.documents import dump
from optd.ctl.invocation import Invocation
from optd.ctl.pace import Pace
from optd.ctl.settings import seconds
from optd_wire.errors import ShuttingDown
from optd_wire.values import GradientSummary, JobReport


def watch(
    invocation: Invocation,
    job: Job,
    interval: Annotated[
        float,
        typer.Option("--interval", "-n", metavar="SECONDS", help="The least time between reports.", callback=seconds),
    ] = 1.0,
    number: Annotated[
        int | None, typer.Option("--count", "-c", min=1, metavar="N", help="Stop after so many reports.")
    ] = None,
) -> None:
    """Watch a job: live on a terminal, else a line for each report; Ctrl-C ends it.

    The server reports at once, and again whenever the job has moved on.
    """
    # Before the stream, which has no deadline: whether the server is there, and has the job.
    invocation.server.ask(lambda server, left: server.list_groups(job, left))
    try:
        with closing(_reports(invocation, job, interval)) as reports:
            _show(islice(reports, number), invocation.json)
    except KeyboardInterrupt:
        return


def _reports(invocation: Invocation, job: str, interval: float) -> Generator[JobReport, None, None]:
    yield from invocation.server.transport.watch_job(job, interval)
    raise ShuttingDown  # a server that goes on reports without end


def _show(reports: Iterator[JobReport], json: bool) -> None:
    if json:
        for report in reports:
            output.write(dump(report, indent=None) + "\n")
    elif sys.stdout.isatty():
        view = _View()
        with Live(console=output.console(), get_renderable=view.render, refresh_per_second=4):
            for report in reports:
                view.note(report)
    else:
        view = _View()
        for report in reports:
            view.note(report)
            output.write(text.printable(view.line()) + "\n")


class _View:
    """The last report, and how it looks as time goes by."""

    def __init__(self) -> None:
        self._report: JobReport | None = None
        self._since = 0.0
        self._pace = Pace()

    def note(self, report: JobReport) -> None:
        self._since = time.monotonic()
        self._pace.note(report.job.version.version, self._since)
        self._report = report

    def render(self) -> RenderableType:
        report = self._report
        if report is None:
            return ""
        algorithms = text.algorithms(report.job.algorithm, (group.options for group in report.groups))
        head = f"{report.job.name}  {algorithms}  {text.policy(report.job.policy)}  {self._state(report)}"
        ago = time.monotonic() - self._since
        parts: list[RenderableType] = [head, "", *groups.views(report.groups)]
        if report.workers:
            parts += ["", workers.view(report.workers, report.unix_ms, ago)]
        if report.rounds:
            parts += ["", *map(text.printable, rounds.short(report.rounds, ago))]
        return Stack(*parts)

    def line(self) -> str:
        """One line about the last report, for a log."""
        report = self._report
        assert report is not None
        # As schedules have it now; an algorithm of another package may have no lr.
        in_force = {one.options.group: {**one.options.options, **one.effective} for one in report.groups}
        rates = [f"{name}={text.shortened(options['lr'])}" for name, options in in_force.items() if "lr" in options]
        parts = [text.moment(report.unix_ms), report.job.name, self._state(report)]
        parts += [f"lr {' '.join(rates)}"] if rates else []
        return "  ".join([*parts, *rounds.short(report.rounds)])

    def _state(self, report: JobReport) -> str:
        pace = self._pace.steps_per_second(time.monotonic())
        speed = f"{text.NONE if pace is None else f'{pace:.1f}'} steps/s"
        job = report.job
        durable = f"  durable {text.durable(job.version)}" if job.version.durable_version else ""
        return (
            f"version {text.count(job.version.version)}{durable}  {speed}  workers {job.workers}  refused "
            f"{job.rejections}" + (f"  {text.gradients(job.gradients)}" if job.gradients != GradientSummary() else "")
        )
