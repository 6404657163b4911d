"""The calls of CheckpointService: jobs as files, and back to earlier versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from optd.transport import rpcs
from optd.transport.calls.calls import Calls
from optd_wire.messages import from_message
from optd_wire.v1 import checkpoint_service_pb2 as checkpoint_pb
from optd_wire.values import JobInfo, JobVersion, SnapshotInfo


class FilePiece(NamedTuple):
    """A part of a file of a checkpoint; the pieces of a file follow one another."""

    file: str
    data: bytes


class CheckpointCalls(Calls):
    """Reads and restores the files of checkpoints, and rolls jobs back."""

    def list_snapshots(self, job: str, timeout: float) -> tuple[SnapshotInfo, ...]:
        """Lists the snapshots that the server has on its disk, the oldest first."""
        request = checkpoint_pb.ListSnapshotsRequest(job=job)
        response = self._connection.call(rpcs.LIST_SNAPSHOTS, request, timeout)
        return tuple(from_message(each, SnapshotInfo) for each in response.snapshots)

    def read_checkpoint(self, job: str, version: int | None, timeout: float | None) -> Iterator[FilePiece]:
        """Yields the pieces of a job's files, the manifest last.

        The files are those of a version on the server's disk, or of the job as it is now.
        """
        request = checkpoint_pb.ReadCheckpointRequest(job=job, version=version)
        for message, _ in self._connection.download(rpcs.READ_CHECKPOINT, request, timeout):
            if message.file:  # the first message has none
                yield FilePiece(message.file, message.data)

    def restore_job(
        self,
        job: str,
        pieces: Iterable[FilePiece],
        timeout: float,
        *,
        creation_id: str = "",
        replace_for: str | None = None,
    ) -> JobInfo:
        """Creates a job from the files of a checkpoint, of which the manifest comes first.

        `creation_id` and `replace_for` are those of `create_job`.
        """

        def messages() -> Iterator[checkpoint_pb.RestoreJobRequest]:
            message = checkpoint_pb.RestoreJobRequest(job=job, creation_id=creation_id, replace_for=replace_for)
            for piece in pieces:
                message.file, message.data = piece
                yield message
                message = checkpoint_pb.RestoreJobRequest()
            message.last = True
            yield message

        response = self._connection.send(rpcs.RESTORE_JOB, messages(), timeout)
        return from_message(response.job, JobInfo)

    def roll_back_job(self, job: str, version: int, timeout: float) -> JobVersion:
        """Makes a job what it was at a version of which the server has a snapshot."""
        request = checkpoint_pb.RollBackJobRequest(job=job, version=version)
        return from_message(self._connection.call(rpcs.ROLL_BACK_JOB, request, timeout).version, JobVersion)
