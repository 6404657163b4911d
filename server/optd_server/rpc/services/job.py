"""JobService: create, change and delete jobs and groups."""

import secrets
from typing import Any

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.options.groups import extent_of_groups
from optd_server.rpc.callers import Caller
from optd_server.rpc.calls import RequestStream
from optd_server.rpc.uploads import offloaded, receive
from optd_server.store.flat import FlatBuffers, FrameSink, bytes_of
from optd_wire.errors import InvalidRequest
from optd_wire.layout import lay_out
from optd_wire.messages import from_message, to_message
from optd_wire.names import check_id
from optd_wire.policy_messages import policy_from_message
from optd_wire.v1 import job_service_pb2 as pb
from optd_wire.values import WEIGHTS, GroupSpec, GroupUpdate, JobSpec, JobUpdate


class JobService:
    """See `proto/optd/v1/job_service.proto`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def create_job(self, requests: RequestStream, caller: Caller) -> Any:
        """Receive a job's weights and make the job visible when it has all of them."""
        first, frames = await requests.first()
        created = await self._catalog.find_created(first.spec.name, first.creation_id)
        if created is not None:
            await created.durable()
            return pb.CreateJobResponse(job=to_message(created.info()))
        spec, creation_id = from_message(first.spec, JobSpec), check_id("creation_id", first.creation_id)
        if first.HasField("replace_for"):
            await self._catalog.make_way(spec, first.replace_for)
        with self._catalog.upload(spec, creation_id or secrets.token_hex(16)) as upload:
            await self._receive(requests, first, frames, upload.sink)
            await self._catalog.prepare(upload.spec.algorithm, upload.spec.groups)
            job = await self._catalog.finish(upload)
            await job.prefaulting.prefault_state()
        return pb.CreateJobResponse(job=to_message(job.info()))

    async def get_job(self, request: pb.GetJobRequest, caller: Caller) -> Any:
        """Describe a job."""
        return pb.GetJobResponse(job=to_message(self._catalog.find(request.job).info()))

    async def list_jobs(self, request: pb.ListJobsRequest, caller: Caller) -> Any:
        """List all jobs."""
        return pb.ListJobsResponse(jobs=map(to_message, self._catalog.summaries()))

    async def delete_job(self, request: pb.DeleteJobRequest, caller: Caller) -> Any:
        """Delete a job; answer with its last summary."""
        return pb.DeleteJobResponse(job=to_message(await self._catalog.delete(request.job)))

    async def add_group(self, requests: RequestStream, caller: Caller) -> Any:
        """Receive a group's weights and add the group, unless the job already has it."""
        first, frames = await requests.first()
        job = self._catalog.find(first.job)
        spec = from_message(first.group, GroupSpec)
        with job.noting_rejections(""):
            await requests.charge(job.inflight)
            info = job.editor.existing_group(spec)
            created = False
            if info is not None:
                await job.durable()
            else:
                index = job.editor.check_new_group(spec)
                weights = await self._receive_group(requests, first, frames, job, spec, index)
                await self._catalog.prepare(job.info().algorithm, [spec])
                info, created = await job.editor.add_group(spec, weights, index)
                await job.prefaulting.prefault_state()
        return pb.AddGroupResponse(group=to_message(info), created=created, version=to_message(job.version))

    async def update_group(self, request: pb.UpdateGroupRequest, caller: Caller) -> Any:
        """Change options of a group."""
        job = self._catalog.find(request.job)
        with job.noting_rejections(""):
            options, version = await job.editor.update_group(from_message(request.update, GroupUpdate))
        return pb.UpdateGroupResponse(options=to_message(options), version=to_message(job.stamped(version)))

    async def update_job(self, request: pb.UpdateJobRequest, caller: Caller) -> Any:
        """Change options of a job as a whole."""
        job = self._catalog.find(request.job)
        with job.noting_rejections(""):
            options, version = await job.editor.update_job(from_message(request, JobUpdate))
        return pb.UpdateJobResponse(options=to_message(options), version=to_message(job.stamped(version)))

    async def set_policy(self, request: pb.SetPolicyRequest, caller: Caller) -> Any:
        """Replace the policy of a job."""
        job = self._catalog.find(request.job)
        with job.noting_rejections(""):
            if not request.policy.WhichOneof("kind"):
                raise InvalidRequest(problem="the new policy of a job must be async, sync or bounded, and none is set")
            policy, version = await job.editor.set_policy(policy_from_message(request.policy))
        return pb.SetPolicyResponse(policy=to_message(policy), version=to_message(job.stamped(version)))

    async def wait_durable(self, request: pb.WaitDurableRequest, caller: Caller) -> Any:
        """Wait until a version of a job survives a power cut."""
        job = self._catalog.find(request.job)
        with job.noting_rejections(""):
            await job.make_durable(request.version if request.HasField("version") else job.version.version)
        return pb.WaitDurableResponse(version=to_message(job.version))

    async def _receive_group(
        self, requests: RequestStream, first: Any, frames: list[Any], job: Job, spec: GroupSpec, index: int
    ) -> FlatBuffers:
        layout = lay_out(spec.parameters)
        with self._catalog.memory.lend(f"group {spec.name!r} of job {job.name!r}", bytes_of([layout])):
            # Frames address the group by its future index, but it is the only group of these buffers.
            weights = FlatBuffers([extent_of_groups([spec], job.state.groups.algorithm.name, index)])
            sink = FrameSink(weights, WEIGHTS, [spec.name], first_group=index)
            await self._receive(requests, first, frames, sink)
        return weights

    async def _receive(self, requests: RequestStream, first: Any, frames: list[Any], sink: FrameSink) -> None:
        """Write all frames of a stream; raise `IncompleteParameter` if weights are missing."""
        await receive(requests, first, frames, offloaded(sink.write_all, self._catalog.offload))
        sink.ledger.require_all()
