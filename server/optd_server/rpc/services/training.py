"""TrainingService: gradients in, weights out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.readers.averages import copy_average, copy_rows, room_for_copy
from optd_server.engine.readers.delta import delta_since
from optd_server.engine.readers.selection import ranges_of, select_rows
from optd_server.engine.reading import Reading
from optd_server.rpc.callers import Caller
from optd_server.rpc.calls import RequestStream
from optd_server.rpc.row_messages import RowMessages
from optd_server.rpc.uploads import receive
from optd_server.rpc.version_streams import VersionStreams
from optd_server.rpc.weight_messages import Ranges, WeightMessages
from optd_server.store.versions import Snapshot
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.registry import BY_NUMBER
from optd_wire.errors import DeadlineExceeded, InvalidRequest
from optd_wire.frames import Received
from optd_wire.messages import from_message, to_message
from optd_wire.row_frames import ids_of
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import JobVersion, PullResult, PushHeader, PushResult, SharedWeights


class TrainingService:
    """See `proto/optd/v1/training_service.proto`."""

    def __init__(self, catalog: Catalog, idle_seconds: float) -> None:
        self._catalog = catalog
        self._messages = WeightMessages(catalog.offload, idle_seconds)
        self._rows = RowMessages(catalog.offload, idle_seconds)
        self._version_streams = VersionStreams()

    async def push(self, requests: RequestStream, caller: Caller) -> Any:
        """Take one push; answer when its step is done."""
        with self._catalog.noting_rejections():
            message, frames = await requests.first()
        _, result = await self._take(requests, message, frames)
        return pb.PushResponse(result=to_message(result))

    async def pull(self, request: pb.PullRequest, caller: Caller) -> AsyncIterator[bytes]:
        """Send the current weights, or some of them, unless the caller already has them."""
        job = self._catalog.find(request.job)
        if request.worker:
            job.workers.check(request.worker, request.epoch)
        ranges = ranges_of(job, request.groups, request.parameters)
        if request.min_version:
            await _reach(job, request)
            ranges = ranges_of(job, request.groups, request.parameters)  # groups may have been added meanwhile
        if request.delivery.none:
            yield pb.PullResponse(result=to_message(PullResult(job.version, not_modified=False))).SerializeToString()
            return
        if request.weights:
            async for encoded in self._pull_average(job, request, ranges):
                yield encoded
            return
        if _has(job.version, request):
            with job.reading() as reading:
                result = _result(job, reading.snapshot, request, not_modified=True)
            yield pb.PullResponse(result=to_message(result)).SerializeToString()
            return
        if request.delivery.shared and ranges is None:
            shared = _deliver(job, request.worker, request.epoch, request.delivery)
            if shared is not None:
                result = _result(job, shared[0], request, shared=shared[1])
                yield pb.PullResponse(result=to_message(result)).SerializeToString()
                return
        with job.reading() as reading:
            first = pb.PullResponse(result=to_message(_result(job, reading.snapshot, request)))
            encoding = _encoding(request.delivery.encoding)
            async for encoded in self._messages.answer(reading, encoding=encoding, ranges=ranges, first=first):
                yield encoded

    async def _pull_average(self, job: Job, request: pb.PullRequest, ranges: Ranges) -> AsyncIterator[bytes]:
        """Send an average of the weights, or a part of it, from a copy."""
        with room_for_copy(job, request.weights, self._catalog.memory):
            snapshot = await copy_average(job, request.weights)
            async for encoded in self._messages.answer(
                job.read_of(snapshot),
                encoding=_encoding(request.delivery.encoding),
                ranges=ranges,
                first=pb.PullResponse(result=to_message(_result(job, snapshot, request))),
                average=request.weights,
            ):
                yield encoded

    async def pull_rows(self, request: pb.PullRowsRequest, caller: Caller) -> AsyncIterator[bytes]:
        """Send some rows of a parameter."""
        job = self._catalog.find(request.job)
        selected = select_rows(job, request.group, request.parameter, ids_of(request.ids))
        encoding = _encoding(request.encoding)
        if request.weights:
            snapshot, gathered = await copy_rows(job, request.weights, selected)
            version = job.stamped(snapshot.version)
            async for encoded in self._rows.answer(job.read_of(snapshot), selected, encoding, version, gathered):
                yield encoded
            return
        with job.reading() as reading:
            version = job.stamped(reading.snapshot.version)
            async for encoded in self._rows.answer(reading, selected, encoding, version):
                yield encoded

    async def watch_versions(self, request: pb.WatchVersionsRequest, caller: Caller) -> AsyncIterator[Any]:
        """Send the version of a job now, unless it is known, and whenever it has changed."""
        job = self._catalog.find(request.job)
        known = request.known_version if request.HasField("known_version") else None
        with self._version_streams.opened():
            while True:
                await job.version_waits.leave(known)
                version = job.version
                yield pb.WatchVersionsResponse(version=to_message(version))
                known = version.version
                await self._version_streams.pause()

    async def step(self, requests: RequestStream, caller: Caller) -> AsyncIterator[bytes]:
        """Take pushes one after the other; answer each with the current weights of its job."""
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
            job, pushed = await self._take(requests, message, frames)
            encoding = _encoding(delivery.encoding)
            if delivery.none:
                pulled = PullResult(job.version, not_modified=False)
                yield _step_response(pushed, pulled, last=True).SerializeToString()
                continue
            if delivery.shared:
                shared = _deliver(job, message.header.worker, message.header.epoch, delivery)
                if shared is not None:
                    version = job.stamped(shared[0].version)
                    pulled = PullResult(version, not_modified=False, shared=shared[1])
                    yield _step_response(pushed, pulled, last=True).SerializeToString()
                    continue
            with job.reading() as reading:
                version = job.stamped(reading.snapshot.version)
                first = _step_response(pushed, PullResult(version, not_modified=False))
                since = message.header.base_version if delivery.changed else None
                async for encoded in self._answer(job, reading, encoding, first, since):
                    yield encoded

    async def _answer(
        self, job: Job, reading: Reading, encoding: Encoding | None, first: pb.StepResponse, since: int | None
    ) -> AsyncIterator[bytes]:
        """Yield the weights that answer a step: all of them, or only those that changed since a version."""
        last = pb.StepResponse(last=True)
        if since is None or since > reading.snapshot.version.version:  # a version that does not exist yet
            async for encoded in self._messages.answer(reading, encoding=encoding, ranges=None, first=first, last=last):
                yield encoded
            return
        changed = delta_since(job, since)
        if changed.ranges:
            async for encoded in self._messages.answer(reading, encoding=encoding, ranges=changed.ranges, first=first):
                yield encoded
            first = pb.StepResponse()
        async for encoded in self._rows.changes(reading, changed.rows, encoding, first, last):
            yield encoded

    async def _take(self, requests: RequestStream, message: Any, frames: list[Received]) -> tuple[Job, PushResult]:
        with self._catalog.noting_rejections():
            if not message.HasField("header"):
                raise InvalidRequest(problem="the first message of a push must have its header")
            job = self._catalog.find(message.header.job)
        with job.noting_rejections(message.header.worker):
            await requests.charge(job.inflight)
            header = from_message(message.header, PushHeader)
            requests.heard = lambda: job.workers.renew(header.worker, header.epoch)
            if isinstance(message, pb.StepRequest):
                _encoding(message.delivery.encoding)  # refuses a wrong encoding before anything changes
            if header.shared is None:
                return job, await job.push(header, _PushStream(requests, message, frames))
            if frames or not message.last:
                raise InvalidRequest(
                    problem="a push whose gradient is in shared memory must be one message without frames"
                )
            requests.give_back()
            return job, await job.push_shared(header, header.shared)

    def _release(self, release: pb.Release) -> None:
        job = self._catalog.find(release.job)
        job.workers.check(release.worker, release.epoch)
        job.sharing.release(release.worker)


@dataclass(frozen=True, slots=True)
class _PushStream:
    """A push whose first message has been read; the engine decides whether the rest is received or skipped."""

    requests: RequestStream
    first: Any
    frames: list[Received]

    async def receive(self, write: Callable[[Sequence[Received]], Awaitable[None]]) -> None:
        self.requests.unpark()
        await receive(self.requests, self.first, self.frames, write)

    def park(self) -> None:
        self.requests.park()


async def _reach(job: Job, request: pb.PullRequest) -> None:
    """Wait until the job has come to the version that a pull demands; raise `DeadlineExceeded` with both versions."""
    try:
        async with asyncio.timeout(request.wait_ms / 1000):
            await job.version_waits.reach(request.min_version)
    except TimeoutError:
        hint = f"; version {request.min_version} of job {job.name!r} was asked for, and it is at version"
        raise DeadlineExceeded(
            rpc="Pull",
            address="the server",
            seconds=f"{request.wait_ms / 1000:g}",
            hint=f"{hint} {job.version.version}",
        ) from None


def _step_response(pushed: PushResult, pulled: PullResult, *, last: bool = False) -> pb.StepResponse:
    return pb.StepResponse(pushed=to_message(pushed), pulled=to_message(pulled), last=last)


def _encoding(number: int) -> Encoding | None:
    """Return the lossy encoding with a number, or None for exact numbers; raise `InvalidRequest`."""
    if not number:
        return None
    encoding = BY_NUMBER.get(number)
    if encoding is None or not encoding.carries_weights:
        name = f"encoding {number}" if encoding is None else encoding.name
        raise InvalidRequest(problem=f"weights cannot travel in {name}")
    return encoding if encoding.converts else None


def _deliver(job: Job, worker: str, epoch: int, delivery: pb.Delivery) -> tuple[Snapshot, SharedWeights] | None:
    """Return the current weights if the worker can read them in shared memory, or None if they must be sent."""
    held = job.sharing.deliver(worker, epoch, in_place=delivery.in_place)
    if held is None:
        return None
    snapshot, in_place = held
    return snapshot, SharedWeights(snapshot.weights.region_numbers(), in_place)


def _has(version: JobVersion, request: pb.PullRequest) -> bool:
    """Return whether the caller already has these weights and options."""
    return (
        request.HasField("known_version")
        and request.HasField("known_revision")
        and (request.known_version, request.known_revision) == (version.version, version.revision)
    )


def _result(
    job: Job,
    snapshot: Snapshot,
    request: pb.PullRequest,
    *,
    not_modified: bool = False,
    shared: SharedWeights | None = None,
) -> PullResult:
    current = request.HasField("known_revision") and request.known_revision == snapshot.version.revision
    return PullResult(job.stamped(snapshot.version), not_modified, () if current else snapshot.options, shared)
