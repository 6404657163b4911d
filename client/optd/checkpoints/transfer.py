"""Brings a job to a place, and a checkpoint to a server. The files travel as they are; nothing is converted."""

import secrets
from collections.abc import Iterator
from itertools import groupby

from optd.checkpoints.files import CheckpointInfo, described, pieces_of, read_info, read_manifest
from optd.checkpoints.place import Place
from optd.transport.calls.checkpoints import FilePiece
from optd.transport.server_calls import ServerCalls
from optd_wire.checkpoint_format import MANIFEST
from optd_wire.errors import JobExists, UnexpectedStatus
from optd_wire.values import JobInfo

SAVE_SECONDS = 3600.0
"""How long a checkpoint may take, unless its caller says so. The server gives up a transfer that stands still."""
_MANIFEST_PIECE = 1 << 20

ADVICE = (
    "if_exists='replace' (--replace) deletes it first, 'load' (--load) loads into it, and the checkpoint may be "
    "restored under another name"
)


def save(
    transport: ServerCalls,
    job: str,
    place: Place,
    timeout: float,
    *,
    version: int | None = None,
    overwrite: bool = False,
) -> CheckpointInfo:
    """Writes a checkpoint of a job: of a version of which the server has a snapshot, or of the job as it is now.

    Steps go on meanwhile. The checkpoint is at its place when this returns, and not before. Blocks for up to `timeout`
    seconds. Raises `CheckpointExists`, `PlaceUnusable`, `UnknownJob`, `VersionNotKept`, `MemoryExceeded`, and errors of
    the connection; nothing is left behind then.
    """
    with place.writing(overwrite=overwrite) as unfinished:
        name = ""
        for name, pieces in groupby(transport.read_checkpoint(job, version, timeout), lambda piece: piece.file):
            with unfinished.open(name) as file:
                for piece in pieces:
                    file.write(piece.data)
        if name != MANIFEST:  # which comes last
            problem = "it sent no manifest"
            raise UnexpectedStatus(rpc="ReadCheckpoint", address=transport.address, status="OK", problem=problem)
    return read_info(place)


def restore(
    transport: ServerCalls,
    place: Place,
    timeout: float,
    *,
    job: str | None = None,
    replace: bool = False,
) -> JobInfo:
    """Creates a job from a checkpoint: under the name that it had, or as `job`. Blocks for up to `timeout` seconds.

    `replace` deletes a job of that name first. Raises `NoCheckpoint`, `DamagedCheckpoint`, `WrongCheckpoint`,
    `JobExists`, `JobInUse`, `MemoryExceeded`, `DiskFull`, and errors of the connection.
    """
    text, found = read_manifest(place)
    info = described(place, text, found)

    def pieces() -> Iterator[FilePiece]:
        for start in range(0, len(text), _MANIFEST_PIECE):
            yield FilePiece(MANIFEST, text[start : start + _MANIFEST_PIECE])
        for name in info.files:
            for data in pieces_of(place, name):
                yield FilePiece(name, data)

    try:
        return transport.restore_job(
            job or info.job,
            pieces(),
            timeout,
            creation_id=secrets.token_hex(16),
            replace_for="" if replace else None,
        )
    except JobExists as error:
        raise JobExists(job=error.values["job"], how=f"{error.values['how']}; {ADVICE}") from None
