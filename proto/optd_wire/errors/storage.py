"""Errors about what a server keeps on its disk."""

from optd_wire.errors.base import Conflict, InvalidArgument, NotFound, ResourceExhausted, Unavailable


class DiskFull(ResourceExhausted):
    """The server's disk has no room for an event. Nothing has changed, and the call may be repeated."""

    reason = "DISK_FULL"
    template = "the disk of the server's {folder} takes no more: {problem}; nothing has changed, and reads go on"


class JobDamaged(Conflict):
    """The files of a job cannot be read, and the server goes on without it."""

    reason = "JOB_DAMAGED"
    template = (
        "the server could not load job {job!r} from its disk, and goes on without it: {problem}. Deleting the job "
        "frees its name; `optctl doctor` tells more, while the server is stopped"
    )


class JobReloads(Unavailable):
    """The job is being loaded from the server's disk: it was rolled back, or has failed. The call may be repeated."""

    reason = "JOB_RELOADS"
    template = "job {job!r} is being loaded from the server's disk; repeat the call"


class VersionNotKept(NotFound):
    """The server has no snapshot of this version."""

    reason = "VERSION_NOT_KEPT"
    template = "the server has no snapshot of version {version} of job {job!r}; it has those of {kept}"


class WrongCheckpoint(InvalidArgument):
    """The files are no checkpoint that the server can make a job of. Nothing has changed."""

    reason = "WRONG_CHECKPOINT"
    template = "this checkpoint makes no job: {problem}"


class NoCheckpoint(NotFound):
    """There is no complete checkpoint at a place."""

    reason = "NO_CHECKPOINT"
    template = "there is no checkpoint at {place}: {problem}"


class CheckpointExists(Conflict):
    """A checkpoint would be written where something is already."""

    reason = "CHECKPOINT_EXISTS"
    template = "{place} has {what}; nothing was written"


class DamagedCheckpoint(Conflict):
    """A file of a checkpoint is not what it was."""

    reason = "DAMAGED_CHECKPOINT"
    template = "the checkpoint at {place} is damaged: {file}: {problem}"


class CheckpointMismatch(Conflict):
    """A checkpoint and the job that it is loaded into differ. Nothing has changed."""

    reason = "CHECKPOINT_MISMATCH"
    template = "the checkpoint at {place} does not fit job {job!r}: {differences}"


class PlaceUnusable(Conflict):
    """A file system refuses to read or write a checkpoint."""

    reason = "PLACE_UNUSABLE"
    template = "{place} cannot be used: {problem}"
