"""TrainingService: gradients in, weights out."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optd_server.engine.average_reading import copy_average, copy_rows, room_for_copy
from optd_server.engine.catalog import Catalog
from optd_server.engine.changed import changed_since
from optd_server.engine.job import Job
from optd_server.engine.selection import ranges_of, table_of
from optd_server.rpc.calls import Requests
from optd_server.rpc.rows import RowMessages
from optd_server.rpc.uploads import receive, skip
from optd_server.rpc.weights import Ranges, WeightMessages
from optd_server.store.snapshots import Snapshot
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import BY_NUMBER
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Received
from optd_wire.messages import from_message, to_message
from optd_wire.row_frames import ids_of
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import PullResult, PushHeader, PushResult, SharedWeights


class TrainingService:
    """See `proto/optd/v1/training_service.proto`."""

    def __init__(self, catalog: Catalog, idle_seconds: float) -> None:
        self._catalog = catalog
        self._messages = WeightMessages(catalog.offload, idle_seconds)
        self._rows = RowMessages(catalog.offload, idle_seconds)

    async def push(self, requests: Requests) -> Any:
        """Takes one push."""
        with self._catalog.noting_rejections():
            message, frames = await requests.first()
        result = await self._take(requests, message, frames)
        return pb.PushResponse(result=to_message(result))

    async def pull(self, request: pb.PullRequest) -> AsyncIterator[bytes]:
        """Sends the current weights, or some of them, unless the caller has them."""
        job = self._catalog.find(request.job)
        if request.worker:
            job.workers.check(request.worker, request.epoch, time.monotonic())
        ranges = ranges_of(job.model.groups, job.name, request.groups, request.parameters)
        if request.weights:
            async for encoded in self._pull_average(job, request, ranges):
                yield encoded
            return
        current = job.model.snapshots.current
        if _has(current, request):
            yield pb.PullResponse(result=to_message(_result(current, request, not_modified=True))).SerializeToString()
            return
        if request.delivery.shared and ranges is None:
            shared = self._deliver(job, request.worker, request.epoch, request.delivery)
            if shared is not None:
                snapshot, where = shared
                yield pb.PullResponse(result=to_message(_result(snapshot, request, shared=where))).SerializeToString()
                return
        snapshot = job.model.snapshots.hold()
        try:
            first = pb.PullResponse(result=to_message(_result(snapshot, request)))
            encoding = _encoding(request.delivery.encoding)
            async for encoded in self._messages.answer(
                job.model, snapshot, encoding=encoding, ranges=ranges, first=first
            ):
                yield encoded
        finally:
            job.model.snapshots.release(snapshot)

    async def _pull_average(self, job: Job, request: pb.PullRequest, ranges: Ranges) -> AsyncIterator[bytes]:
        """Sends an average of the weights, or a part of it, from a copy."""
        with room_for_copy(job, request.weights, self._catalog.memory):
            snapshot = await copy_average(job, request.weights)
            async for encoded in self._messages.answer(
                job.model,
                snapshot,
                encoding=_encoding(request.delivery.encoding),
                ranges=ranges,
                first=pb.PullResponse(result=to_message(_result(snapshot, request))),
                average=request.weights,
            ):
                yield encoded

    async def pull_rows(self, request: pb.PullRowsRequest) -> AsyncIterator[bytes]:
        """Sends some rows of a parameter."""
        job = self._catalog.find(request.job)
        groups = job.model.groups
        table = table_of(groups, job.name, request.group, request.parameter, ids_of(request.ids))
        encoding = _encoding(request.encoding)
        if request.weights:
            job.model.averages.find_filled(request.weights, job.name)
            current, gathered = await copy_rows(job, request.weights, table)
            async for encoded in self._rows.answer(job.model, current, table, encoding, gathered):
                yield encoded
            return
        snapshot = job.model.snapshots.hold()
        try:
            async for encoded in self._rows.answer(job.model, snapshot, table, encoding):
                yield encoded
        finally:
            job.model.snapshots.release(snapshot)

    async def step(self, requests: Requests) -> AsyncIterator[bytes]:
        """Takes one push after another, each answered with the current weights."""
        while True:
            with self._catalog.noting_rejections():
                request = await requests.next(patient=True)
            if request is None:
                return
            message, frames = request
            if message.HasField("release"):
                self._release(message.release)
                continue
            delivery = message.delivery
            pushed = await self._take(requests, message, frames)
            encoding = _encoding(delivery.encoding)
            job = self._catalog.find(message.header.job)
            if delivery.none:
                pulled = PullResult(job.model.version, not_modified=False)
                yield _step_response(pushed, pulled, last=True).SerializeToString()
                continue
            if delivery.shared:
                shared = self._deliver(job, message.header.worker, message.header.epoch, delivery)
                if shared is not None:
                    pulled = PullResult(shared[0].version, not_modified=False, shared=shared[1])
                    yield _step_response(pushed, pulled, last=True).SerializeToString()
                    continue
            snapshot = job.model.snapshots.hold()
            try:
                first = _step_response(pushed, PullResult(snapshot.version, not_modified=False))
                since = message.header.base_version if delivery.changed else None
                async for encoded in self._answer(job, snapshot, encoding, first, since):
                    yield encoded
            finally:
                job.model.snapshots.release(snapshot)

    async def _answer(
        self, job: Job, snapshot: Snapshot, encoding: Encoding | None, first: pb.StepResponse, since: int | None
    ) -> AsyncIterator[bytes]:
        """The weights as an answer of a step: all, or only what has changed since a version."""
        last = pb.StepResponse(last=True)
        if since is None or since > snapshot.version.version:  # which nobody can have
            async for encoded in self._messages.answer(
                job.model, snapshot, encoding=encoding, ranges=None, first=first, last=last
            ):
                yield encoded
            return
        changed = changed_since(job.model.snapshots.journal, job.model.groups.extents, since)
        if changed.ranges:
            async for encoded in self._messages.answer(
                job.model, snapshot, encoding=encoding, ranges=changed.ranges, first=first
            ):
                yield encoded
            first = pb.StepResponse()
        async for encoded in self._rows.changes(job.model, snapshot, changed.rows, encoding, first, last):
            yield encoded

    async def _take(self, requests: Requests, message: Any, frames: list[Received]) -> PushResult:
        with self._catalog.noting_rejections():
            if not message.HasField("header"):
                raise InvalidRequest(problem="the first message of a push must have its header")
            job = self._catalog.find(message.header.job)
        with job.noting_rejections(message.header.worker, time.time):
            header = from_message(message.header, PushHeader)
            if isinstance(message, pb.StepRequest):
                _encoding(message.delivery.encoding)  # before anything has changed
            if header.shared is None:
                return await job.pushes.push(header, _Upload(requests, message, frames), time.monotonic(), time.time())
            if frames or not message.last:
                raise InvalidRequest(problem="a push whose gradient is shared has one message, without frames")
            job.workers.check(header.worker, header.epoch, time.monotonic())
            gradient = job.sharing.gradient(header.worker, header.epoch, header.shared)
            requests.give_back()
            return await job.pushes.push_shared(header, gradient, time.monotonic(), time.time())

    def _deliver(
        self, job: Job, worker: str, epoch: int, delivery: pb.Delivery
    ) -> tuple[Snapshot, SharedWeights] | None:
        """The current weights in memory that the worker shares, if it does."""
        held = job.sharing.deliver(worker, epoch, in_place=delivery.in_place)
        if held is None:
            return None
        snapshot, in_place = held
        return snapshot, SharedWeights(snapshot.weights.region_numbers(), in_place)

    def _release(self, release: pb.Release) -> None:
        job = self._catalog.find(release.job)
        job.workers.check(release.worker, release.epoch, time.monotonic())
        job.sharing.release(release.worker)


@dataclass(frozen=True, slots=True)
class _Upload:
    """A push whose first message is here."""

    requests: Requests
    first: Any
    frames: list[Received]

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        await receive(self.requests, self.first, self.frames, write)

    async def skip(self) -> None:
        await skip(self.requests, self.first)

    def park(self) -> None:
        # What the first message holds is part of what is planned for the job.
        self.requests.give_back()


def _step_response(pushed: PushResult, pulled: PullResult, *, last: bool = False) -> pb.StepResponse:
    return pb.StepResponse(pushed=to_message(pushed), pulled=to_message(pulled), last=last)


def _encoding(number: int) -> Encoding | None:
    """The encoding that weights of all dtypes are asked for in, None for unchanged; raises `InvalidRequest`."""
    if not number:
        return None
    encoding = BY_NUMBER.get(number)
    if encoding is None or not encoding.carries_weights:
        name = f"encoding {number}" if encoding is None else encoding.name
        raise InvalidRequest(problem=f"weights cannot travel in {name}")
    return encoding if encoding.converts else None


def _has(snapshot: Snapshot, request: pb.PullRequest) -> bool:
    """Whether the caller has these weights and options already."""
    version = snapshot.version
    return (
        request.HasField("known_version")
        and request.HasField("known_revision")
        and (request.known_version, request.known_revision) == (version.version, version.revision)
    )


def _result(
    snapshot: Snapshot, request: pb.PullRequest, *, not_modified: bool = False, shared: SharedWeights | None = None
) -> PullResult:
    current = request.HasField("known_revision") and request.known_revision == snapshot.version.revision
    return PullResult(snapshot.version, not_modified, () if current else snapshot.options, shared)
