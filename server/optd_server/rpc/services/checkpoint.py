"""CheckpointService: jobs as files, out and in, and back to an earlier version."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from optd_server.durability.checkpoints import LONGEST_MANIFEST, Checkpoint, Checkpoints, Incoming
from optd_server.engine.catalog import Catalog
from optd_server.rpc.callers import Caller
from optd_server.rpc.calls import RequestStream
from optd_wire.checkpoint_format import MANIFEST
from optd_wire.errors import InvalidRequest, WrongCheckpoint
from optd_wire.messages import to_message
from optd_wire.names import check_id
from optd_wire.v1 import checkpoint_service_pb2 as pb


class CheckpointService:
    """See `proto/optd/v1/checkpoint_service.proto`."""

    def __init__(self, catalog: Catalog, checkpoints: Checkpoints) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints

    async def list_snapshots(self, request: pb.ListSnapshotsRequest, caller: Caller) -> Any:
        """List what can be rolled back to."""
        job = self._catalog.find(request.job)
        found = await self._checkpoints.snapshots(job)
        return pb.ListSnapshotsResponse(snapshots=map(to_message, found), version=to_message(job.version))

    async def read_checkpoint(self, request: pb.ReadCheckpointRequest, caller: Caller) -> AsyncIterator[Any]:
        """Send the files of a checkpoint."""
        job = self._catalog.find(request.job)
        version = request.version if request.HasField("version") else None
        async with aclosing(self._checkpoints.read(job, version)) as parts:
            async for part in parts:
                if isinstance(part, Checkpoint):
                    yield pb.ReadCheckpointResponse(version=to_message(part.version), bytes=part.bytes)
                else:
                    yield pb.ReadCheckpointResponse(file=part.file, data=bytes(part.data))

    async def restore_job(self, requests: RequestStream, caller: Caller) -> Any:
        """Receive the files of a checkpoint, and make a job of them."""
        first = await requests.first()
        created = await self._catalog.find_created(first.job, first.creation_id)
        if created is not None:
            await created.durable()
            return pb.RestoreJobResponse(job=to_message(created.info()))
        creation_id = check_id("creation_id", first.creation_id) or secrets.token_hex(16)
        text, message = await _manifest(requests, first)
        manifest = await self._checkpoints.parse(text, first.job)
        if first.HasField("replace_for"):
            await self._catalog.make_way(manifest.spec, first.replace_for)
        async with self._checkpoints.receiving(manifest, creation_id) as incoming:
            await _receive(requests, message, incoming)
            job = await self._checkpoints.finish(incoming)
            await job.durable()
        return pb.RestoreJobResponse(job=to_message(job.info()))

    async def roll_back_job(self, request: pb.RollBackJobRequest, caller: Caller) -> Any:
        """Make a job what it was at an earlier version."""
        await self._checkpoints.roll_back(self._catalog.find(request.job), request.version)
        return pb.RollBackJobResponse(version=to_message(self._catalog.find(request.job).version))


async def _manifest(requests: RequestStream, first: Any) -> tuple[bytearray, Any]:
    """Return the manifest, and the first message that has none of it."""
    manifest, message = bytearray(), first
    while not message.data or message.file == MANIFEST:
        if len(manifest) + len(message.data) > LONGEST_MANIFEST:
            raise WrongCheckpoint(problem=f"its manifest is longer than {LONGEST_MANIFEST} bytes")
        manifest += message.data
        if message.last:
            break
        message = await _next(requests)
    return manifest, message


async def _receive(requests: RequestStream, message: Any, incoming: Incoming) -> None:
    while True:
        if message.data and message.file != MANIFEST:
            await asyncio.to_thread(incoming.write, message.file, message.data)
        if message.last:
            requests.give_back()
            return
        message = await _next(requests)


async def _next(requests: RequestStream) -> Any:
    message = await requests.next()
    if message is None:
        raise InvalidRequest(problem="the stream ended before its last message")
    return message
