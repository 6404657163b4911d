"""The calls of JobService: jobs, their groups and their options."""

from __future__ import annotations

from optd.transport import rpcs
from optd.transport.calls.calls import Calls
from optd.transport.numbers import Source
from optd_wire.messages import from_message, to_message
from optd_wire.policy_messages import policy_from_message
from optd_wire.v1 import job_service_pb2 as job_pb
from optd_wire.values import (
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupUpdate,
    JobInfo,
    JobOptions,
    JobSpec,
    JobSummary,
    JobUpdate,
    JobVersion,
    Policy,
)


class JobCalls(Calls):
    """Creates, describes, changes and deletes jobs."""

    def create_job(
        self,
        spec: JobSpec,
        weights: Source,
        timeout: float,
        *,
        creation_id: str = "",
        replace_for: str | None = None,
    ) -> JobInfo:
        """Creates a job with its weights; a repeat with the same `creation_id` finds the job there.

        `replace_for` names the worker for which a job of the same name is deleted first.
        """
        first = job_pb.CreateJobRequest(spec=to_message(spec), creation_id=creation_id, replace_for=replace_for)
        response = self._connection.upload(rpcs.CREATE_JOB, first, weights(), timeout)
        return from_message(response.job, JobInfo)

    def get_job(self, job: str, timeout: float) -> JobInfo:
        """Describes a job."""
        request = job_pb.GetJobRequest(job=job)
        response = self._connection.call(rpcs.GET_JOB, request, timeout)
        return from_message(response.job, JobInfo)

    def list_jobs(self, timeout: float) -> tuple[JobSummary, ...]:
        """Lists all jobs."""
        request = job_pb.ListJobsRequest()
        response = self._connection.call(rpcs.LIST_JOBS, request, timeout)
        return tuple(from_message(job, JobSummary) for job in response.jobs)

    def delete_job(self, job: str, timeout: float) -> JobSummary:
        """Deletes a job; returns what it was."""
        request = job_pb.DeleteJobRequest(job=job)
        response = self._connection.call(rpcs.DELETE_JOB, request, timeout)
        return from_message(response.job, JobSummary)

    def add_group(self, job: str, group: GroupSpec, weights: Source, timeout: float) -> GroupInfo:
        """Adds a group, or finds that the job has it."""
        first = job_pb.AddGroupRequest(job=job, group=to_message(group))
        response = self._connection.upload(rpcs.ADD_GROUP, first, weights(), timeout)
        return from_message(response.group, GroupInfo)

    def update_group(self, job: str, update: GroupUpdate, timeout: float) -> tuple[GroupOptions, JobVersion]:
        """Changes options of a group."""
        request = job_pb.UpdateGroupRequest(job=job, update=to_message(update))
        response = self._connection.call(rpcs.UPDATE_GROUP, request, timeout)
        return from_message(response.options, GroupOptions), from_message(response.version, JobVersion)

    def update_job(self, update: JobUpdate, timeout: float) -> tuple[JobOptions, JobVersion]:
        """Changes options of a job as a whole."""
        response = self._connection.call(rpcs.UPDATE_JOB, to_message(update), timeout)
        return from_message(response.options, JobOptions), from_message(response.version, JobVersion)

    def set_policy(self, job: str, policy: Policy, timeout: float) -> tuple[Policy, JobVersion]:
        """Replaces the policy of a job."""
        request = job_pb.SetPolicyRequest(job=job, policy=to_message(policy))
        response = self._connection.call(rpcs.SET_POLICY, request, timeout)
        return policy_from_message(response.policy), from_message(response.version, JobVersion)

    def wait_durable(self, job: str, version: int | None, timeout: float) -> JobVersion:
        """Waits until a version of a job, or all of it so far, survives a power cut."""
        request = job_pb.WaitDurableRequest(job=job, version=version)
        return from_message(self._connection.call(rpcs.WAIT_DURABLE, request, timeout).version, JobVersion)
