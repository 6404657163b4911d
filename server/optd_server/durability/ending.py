"""How the server ends when its disk fails."""

import os
import sys

import structlog

from optd_wire.errors import OptdError

log = structlog.get_logger("optd.storage")

EXIT_DISK = 74
"""The exit status after an error of the disk: EX_IOERR of sysexits.h."""


def die(problem: BaseException) -> None:
    """End the server at once: an error of the disk means that nobody may be told that something is durable.

    A retried sync can succeed although the data is lost, so there is nothing to try again.
    """
    if isinstance(problem, OptdError):
        raise problem  # some of these errors are an OSError too, and none of them is one of the disk
    log.critical(
        "the disk has failed, and the server ends: nothing is acknowledged from now on",
        problem=f"{type(problem).__name__}: {problem}",
        exit_status=EXIT_DISK,
    )
    sys.stderr.flush()
    os._exit(EXIT_DISK)
