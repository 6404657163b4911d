"""The calls of InspectionService, and the health check."""

from __future__ import annotations

from collections.abc import Generator

from grpc_health.v1 import health_pb2

from optd.transport import rpcs
from optd.transport.calls.calls import Calls
from optd.transport.requests import AlgorithmList, GroupInspection, OptionHistory
from optd_wire.messages import from_message
from optd_wire.v1 import inspection_service_pb2 as inspection_pb
from optd_wire.values import (
    AlgorithmInfo,
    GroupSummary,
    JobReport,
    OptionChange,
    OptionInfo,
    ParameterReport,
    Rejection,
    RoundInfo,
    ServerStatus,
)


class InspectionCalls(Calls):
    """Tells what a server, its jobs and their groups are."""

    def server_status(self, timeout: float) -> ServerStatus:
        """Describes the server."""
        request = inspection_pb.GetServerStatusRequest()
        return from_message(self._connection.call(rpcs.GET_SERVER_STATUS, request, timeout), ServerStatus)

    def list_algorithms(self, timeout: float) -> AlgorithmList:
        """Describes every algorithm, and the options that do not depend on one."""
        request = inspection_pb.ListAlgorithmsRequest()
        response = self._connection.call(rpcs.LIST_ALGORITHMS, request, timeout)
        return AlgorithmList(
            [from_message(algorithm, AlgorithmInfo) for algorithm in response.algorithms],
            [from_message(option, OptionInfo) for option in response.group_options],
            [from_message(option, OptionInfo) for option in response.job_options],
        )

    def list_groups(self, job: str, timeout: float) -> tuple[GroupSummary, ...]:
        """Lists the groups of a job."""
        request = inspection_pb.ListGroupsRequest(job=job)
        response = self._connection.call(rpcs.LIST_GROUPS, request, timeout)
        return tuple(from_message(group, GroupSummary) for group in response.groups)

    def inspect_group(
        self,
        job: str,
        group: str,
        timeout: float,
        *,
        parameter: str = "",
        statistics: bool = False,
        bins: int = 0,
    ) -> GroupInspection:
        """Describes the parameters of a group."""
        request = inspection_pb.InspectGroupRequest(
            job=job, group=group, parameter=parameter, statistics=statistics, bins=bins
        )
        responses = [message for message, _ in self._connection.download(rpcs.INSPECT_GROUP, request, timeout)]
        reports = [report for response in responses for report in response.parameters]
        first = responses[0]
        return GroupInspection(
            from_message(first.group, GroupSummary),
            tuple(from_message(report, ParameterReport) for report in reports),
            first.gradient_version if first.HasField("gradient_version") else None,
            first.gradient_note,
        )

    def list_rejections(self, job: str, timeout: float) -> tuple[dict[str, int], tuple[Rejection, ...]]:
        """Lists what a job has refused: counts by reason, and the last refusals."""
        request = inspection_pb.ListRejectionsRequest(job=job)
        response = self._connection.call(rpcs.LIST_REJECTIONS, request, timeout)
        recent = tuple(from_message(rejection, Rejection) for rejection in response.recent)
        return dict(response.counts), recent

    def list_option_changes(self, job: str, group: str, timeout: float) -> OptionHistory:
        """Lists the changes of options of a group, or of the whole job if `group` is ""; oldest first."""
        request = inspection_pb.ListOptionChangesRequest(job=job, group=group)
        response = self._connection.call(rpcs.LIST_OPTION_CHANGES, request, timeout)
        changes = (from_message(change, OptionChange) for change in response.changes)
        return OptionHistory(changes, response.forgotten)

    def list_rounds(self, job: str, timeout: float) -> tuple[RoundInfo, ...]:
        """Lists what the next steps of a job wait for."""
        response = self._connection.call(rpcs.LIST_ROUNDS, inspection_pb.ListRoundsRequest(job=job), timeout)
        return tuple(from_message(found, RoundInfo) for found in response.rounds)

    def watch_job(self, job: str, interval_seconds: float) -> Generator[JobReport, None, None]:
        """Yields a report whenever the job has changed, without end; closing the iterator ends the call."""
        request = inspection_pb.WatchJobRequest(job=job, interval_ms=int(interval_seconds * 1000))
        for message, _ in self._connection.download(rpcs.WATCH_JOB, request, None):
            yield from_message(message, JobReport)

    def health(self, timeout: float) -> bool:
        """Whether the server reports that it serves."""
        response = self._connection.call(rpcs.CHECK_HEALTH, health_pb2.HealthCheckRequest(), timeout)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
