"""Which lane a session takes: how the numbers of its job travel."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from optd.transport.encoding import Wire
from optd.transport.shm import SharedMemoryLane
from optd.transport.transport import Transport
from optd_wire.errors import OptdError, SharedMemoryUnavailable
from optd_wire.layout import lay_out
from optd_wire.values import GroupInfo, GroupSpec

logger = logging.getLogger("optd")

LaneName = Literal["auto", "grpc", "shm"]
# A message carries fewer elements as fast as shared memory does.
SHARED_ELEMENTS = 1 << 16


class Who(NamedTuple):
    """A worker that has joined a job."""

    job: str
    worker: str
    epoch: int


def wants_shared_memory(wanted: LaneName, wire: Wire, groups: Sequence[GroupInfo] | Sequence[GroupSpec]) -> bool:
    """Whether a session that has been told `wanted` is to share memory with the server, if it can."""
    elements = sum(parameter.size for group in groups for parameter in group.parameters)
    return wanted == "shm" or (wanted == "auto" and wire.exact and elements >= SHARED_ELEMENTS)


def share_memory(
    transport: Transport, who: Who, groups: Sequence[GroupInfo], timeout: float, *, required: bool
) -> SharedMemoryLane | None:
    """Memory that worker and server share; None where there is none, or where that is `required` what is in the way."""
    try:
        return SharedMemoryLane(
            transport,
            job=who.job,
            worker=who.worker,
            epoch=who.epoch,
            layouts=[lay_out(group.parameters) for group in groups],
            timeout=timeout,
        )
    except OptdError as error:
        # Whatever it is: messages may get through where this does not, and say what is wrong where they do not.
        if required:
            raise _with_advice(error) from None
        logger.debug("job %s: no shared memory, numbers travel in messages: %s", who.job, error)
        return None


def _with_advice(error: OptdError) -> OptdError:
    """Why there is no shared memory, with what to do; any other error as it is."""
    if not isinstance(error, SharedMemoryUnavailable):
        return error
    return SharedMemoryUnavailable(why=f"{error.values['why']}; lane='auto' does without")
