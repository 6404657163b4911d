"""Errors about what a server keeps on its disk."""

from optd_wire.errors.base import Conflict, ResourceExhausted


class DiskFull(ResourceExhausted):
    """The server's disk has no room for an event. Nothing has changed, and the call may be repeated."""

    reason = "DISK_FULL"
    template = "the disk of the server's {folder} takes no more: {problem}; nothing has changed, and reads go on"


class JobDamaged(Conflict):
    """The files of a job cannot be read, and the server was told to start without it."""

    reason = "JOB_DAMAGED"
    template = "the server could not recover job {job!r} and started without it (--recover skip): {problem}"
