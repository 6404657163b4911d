"""StateService: read and replace the numbers of weights, last gradients and optimizer state."""

from collections.abc import AsyncIterator
from typing import Any

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.readers.state import read_state, select, selected_bytes
from optd_server.engine.state_upload import StateUpload
from optd_server.rpc.batches import batches_of
from optd_server.rpc.callers import Caller
from optd_server.rpc.calls import RequestStream
from optd_server.rpc.patience import wait_for_step
from optd_server.rpc.uploads import offloaded, receive
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, encode
from optd_wire.messages import from_message, to_message
from optd_wire.names import check_id
from optd_wire.v1 import state_service_pb2 as pb
from optd_wire.values import GroupOptions, JobVersion, WriteStateHeader


class StateService:
    """See `proto/optd/v1/state_service.proto`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def read_state(self, request: pb.ReadStateRequest, caller: Caller) -> AsyncIterator[bytes]:
        """Send a copy of the selected fields."""
        job = self._catalog.find(request.job)
        selection = select(job, request.fields, request.group, request.parameter)
        with self._catalog.memory.lend(f"a copy of the state of job {job.name!r}", selected_bytes(job, selection)):
            reading = await read_state(job, selection, wait_for_step)
            yield encode(pb.ReadStateResponse(result=to_message(reading.result)))
            for frames in batches_of(reading.frames):
                yield encode(pb.ReadStateResponse(), frames)

    async def write_state(self, requests: RequestStream, caller: Caller) -> Any:
        """Receive fields and options, and put all of them in force together."""
        message, frames = await requests.first()
        if not message.HasField("header"):
            raise InvalidRequest(problem="the first message must have the header")
        header = from_message(message.header, WriteStateHeader)
        job = self._catalog.find(header.job)
        requests.heard = lambda: job.workers.renew(header.worker, header.epoch)
        with job.noting_rejections(header.worker):
            await requests.charge(job.inflight)
            options, version = await self._receive(requests, message, frames, job, header)
        return pb.WriteStateResponse(version=to_message(job.stamped(version)), options=map(to_message, options))

    async def _receive(
        self, requests: RequestStream, message: Any, frames: list[Frame], job: Job, header: WriteStateHeader
    ) -> tuple[tuple[GroupOptions, ...], JobVersion]:
        worker = job.workers.check(header.worker, header.epoch)
        known = worker.answer_to(check_id("write_id", header.write_id))
        if known is not None:
            await job.durable()
            return known
        upload = StateUpload(job, header, self._catalog.clock.wall())
        with upload.room(self._catalog.memory):
            await receive(requests, message, frames, offloaded(upload.write, self._catalog.offload))
            return await upload.put_in_force()
