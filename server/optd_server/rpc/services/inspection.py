"""InspectionService: look at the server, at jobs and at groups."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from optd_server.engine.catalog import Catalog
from optd_server.engine.clock import Clock
from optd_server.engine.job import Job
from optd_server.engine.options.resolution import describe_algorithms, describe_group_options, describe_job_options
from optd_server.engine.readers.inspection import MAX_BINS, inspect_group
from optd_server.engine.readers.rounds import open_rounds
from optd_server.rpc.callers import Caller
from optd_server.rpc.patience import wait_for_step
from optd_wire.errors import InvalidRequest, UnknownJob
from optd_wire.messages import to_message
from optd_wire.v1 import inspection_service_pb2 as pb
from optd_wire.values import JobReport, ServerStatus

# So many parameters with their histograms stay far below the limit on messages.
PARAMETERS_A_MESSAGE = 64
MIN_INTERVAL_MS = 50
REFRESH_SECONDS = 2.0
# The histograms of all parameters and fields are held until the last one is computed.
MAX_ALL_BINS = 1 << 20


class InspectionService:
    """See `proto/optd/v1/inspection_service.proto`."""

    def __init__(self, catalog: Catalog, status: Callable[[], ServerStatus], stopping: asyncio.Event) -> None:
        self._catalog = catalog
        self._status = status
        self._stopping = stopping

    async def get_server_status(self, request: pb.GetServerStatusRequest, caller: Caller) -> Any:
        """Describe the server."""
        return to_message(self._status())

    async def list_algorithms(self, request: pb.ListAlgorithmsRequest, caller: Caller) -> Any:
        """Describe every algorithm, and the options of groups and jobs."""
        return pb.ListAlgorithmsResponse(
            algorithms=map(to_message, describe_algorithms()),
            group_options=map(to_message, describe_group_options()),
            job_options=map(to_message, describe_job_options()),
        )

    async def list_groups(self, request: pb.ListGroupsRequest, caller: Caller) -> Any:
        """List the groups of a job."""
        job = self._catalog.find(request.job)
        return pb.ListGroupsResponse(groups=_summaries(job), version=to_message(job.version))

    async def inspect_group(self, request: pb.InspectGroupRequest, caller: Caller) -> AsyncIterator[Any]:
        """Describe the parameters of a group, with statistics if asked for."""
        if request.bins > MAX_BINS:
            raise InvalidRequest(problem=f"bins must be in [0, {MAX_BINS}], got {request.bins}")
        job = self._catalog.find(request.job)
        if request.statistics and not request.parameter:
            parameters = job.group_summary(request.group).parameters
            if parameters * request.bins > MAX_ALL_BINS:
                raise InvalidRequest(
                    problem=f"bins must be at most {MAX_ALL_BINS // parameters} for the {parameters} parameters of "
                    f"group {request.group!r}, got {request.bins}"
                )
        report, gradient = await inspect_group(
            job,
            request.group,
            request.parameter,
            with_statistics=request.statistics,
            bins=request.bins,
            patience=wait_for_step,
        )
        yield pb.InspectGroupResponse(
            group=to_message(report.group),
            version=to_message(report.version),
            gradient_version=gradient.version,
            gradient_note=gradient.note,
        )
        for start in range(0, len(report.parameters), PARAMETERS_A_MESSAGE):
            part = report.parameters[start : start + PARAMETERS_A_MESSAGE]
            yield pb.InspectGroupResponse(parameters=[to_message(parameter) for parameter in part])

    async def list_rejections(self, request: pb.ListRejectionsRequest, caller: Caller) -> Any:
        """List what a job has refused."""
        rejections = self._catalog.find(request.job).rejections
        return pb.ListRejectionsResponse(
            counts=rejections.counts, recent=[to_message(rejection) for rejection in rejections.recent]
        )

    async def list_option_changes(self, request: pb.ListOptionChangesRequest, caller: Caller) -> Any:
        """List the changes of a job's options."""
        job = self._catalog.find(request.job)
        changes, forgotten = job.option_history(request.group)
        return pb.ListOptionChangesResponse(
            changes=map(to_message, changes), version=to_message(job.version), forgotten=forgotten
        )

    async def list_rounds(self, request: pb.ListRoundsRequest, caller: Caller) -> Any:
        """List what the next steps of a job wait for."""
        found = open_rounds(self._catalog.find(request.job), self._catalog.clock)
        return pb.ListRoundsResponse(rounds=map(to_message, found))

    async def watch_job(self, request: pb.WatchJobRequest, caller: Caller) -> AsyncIterator[Any]:
        """Report a job now and whenever it has changed, at most once per interval, and from time to time."""
        job = self._catalog.find(request.job)
        interval = max(MIN_INTERVAL_MS, request.interval_ms) / 1000
        changed = asyncio.Event()
        unwatch = job.fold.watch(changed.set)
        try:
            while not self._stopping.is_set():
                changed.clear()
                yield to_message(_report(job, self._catalog.clock))
                ended = await _first_of(self._stopping, job.closed, seconds=interval)
                if not ended:
                    # Leases are renewed, and time passes in open rounds, without a change of the job.
                    await _first_of(changed, self._stopping, job.closed, seconds=REFRESH_SECONDS)
                if job.closed.is_set():
                    raise UnknownJob(job=request.job)
        finally:
            unwatch()


def _report(job: Job, clock: Clock) -> JobReport:
    return JobReport(
        job=job.summary(),
        groups=job.group_summaries(),
        workers=job.workers.infos(),
        unix_ms=int(clock.wall() * 1000),
        rounds=open_rounds(job, clock),
    )


def _summaries(job: Job) -> list[Any]:
    return [to_message(summary) for summary in job.group_summaries()]


async def _first_of(*events: asyncio.Event, seconds: float | None = None) -> bool:
    """Wait for any of the events; return whether one was set before the time was up."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
