"""TrainingService: gradients in, weights out."""

import time
from collections.abc import AsyncIterator
from typing import Any

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.pushes import outcome
from optd_server.rpc.calls import Requests
from optd_server.rpc.frames import cut, weights_of
from optd_server.rpc.uploads import receive, skip
from optd_server.store.snapshots import Snapshot
from optd_wire.convert import from_message, to_message
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, Outgoing, encode
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import PullResult, PushHeader, PushResult


class TrainingService:
    """See `proto/optd/v1/training_service.proto`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def push(self, requests: Requests) -> Any:
        """Takes one push."""
        message, frames = await requests.first()
        result = await self._take(requests, message, frames)
        return pb.PushResponse(result=to_message(result))

    async def pull(self, request: pb.PullRequest) -> AsyncIterator[bytes]:
        """Sends the current weights, unless the caller has them."""
        job = self._catalog.find(request.job)
        if request.worker:
            job.workers.check(request.worker, request.epoch, time.monotonic())
        snapshot = job.model.snapshots.hold()
        try:
            result = _pull_result(snapshot, request)
            batches = [] if result.not_modified else list(cut(weights_of(snapshot)))
            header = pb.PullResponse(result=to_message(result))
            async for encoded in self._encoded(batches, first=header, last=pb.PullResponse()):
                yield encoded
        finally:
            job.model.snapshots.release(snapshot)

    async def step(self, requests: Requests) -> AsyncIterator[bytes]:
        """Takes one push after another, each answered with the current weights."""
        while True:
            request = await requests.next(patient=True)
            if request is None:
                return
            message, frames = request
            result = await self._take(requests, message, frames)
            job = self._catalog.find(message.header.job)
            snapshot = job.model.snapshots.hold()
            try:
                pulled = PullResult(snapshot.version, not_modified=False)
                header = pb.StepResponse(pushed=to_message(result), pulled=to_message(pulled))
                batches = list(cut(weights_of(snapshot)))
                async for encoded in self._encoded(batches, first=header, last=pb.StepResponse(last=True)):
                    yield encoded
            finally:
                job.model.snapshots.release(snapshot)

    async def _take(self, requests: Requests, message: Any, frames: list[Frame]) -> PushResult:
        if not message.HasField("header"):
            raise InvalidRequest(problem="the first message of a push must have its header")
        header = from_message(message.header, PushHeader)
        job = self._catalog.find(header.job)
        with job.noting_rejections(header.worker, time.time):
            return await self._receive(requests, job, header, message, frames)

    async def _receive(
        self, requests: Requests, job: Job, header: PushHeader, message: Any, frames: list[Frame]
    ) -> PushResult:
        known = job.pushes.admit(header, time.monotonic())
        if known is not None:
            await skip(requests, message)
            return await outcome(known)
        slot = await job.pushes.take_slot()
        try:
            await receive(requests, message, frames, slot.write, self._catalog.offload)
        except BaseException:
            job.pushes.give_back(slot)
            raise
        return await job.pushes.push(header, slot, time.monotonic())

    async def _encoded(self, batches: list[list[Outgoing]], *, first: Any, last: Any) -> AsyncIterator[bytes]:
        """Encodes a message for each list of frames, at least one; off the loop where it is large."""
        for index, frames in enumerate(batches or [[]]):
            message = type(first)()
            if index == 0:
                message.MergeFrom(first)
            if index >= len(batches) - 1:
                message.MergeFrom(last)
            elements = sum(frame.count for frame in frames)
            yield await self._catalog.offload.copy(elements, lambda: encode(message, frames))  # noqa: B023


def _pull_result(snapshot: Snapshot, request: pb.PullRequest) -> PullResult:
    version = snapshot.version
    current = request.HasField("known_revision") and request.known_revision == version.revision
    not_modified = current and request.HasField("known_version") and request.known_version == version.version
    return PullResult(version, not_modified, () if current else snapshot.options)
