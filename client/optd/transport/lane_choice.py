"""Which lane a session takes for the numbers of its job."""

import logging
from collections.abc import Sequence
from typing import Literal

from optd.transport.encoding import MessageEncoding
from optd.transport.lane import Lane, Member
from optd.transport.message_lane import MessageLane
from optd.transport.server_calls import ServerCalls
from optd.transport.shm import SharedMemoryLane
from optd_wire.errors import OptdError, SharedMemoryUnavailable, Unavailable
from optd_wire.layout import lay_out
from optd_wire.values import GroupInfo, GroupSpec

logger = logging.getLogger("optd")

LaneName = Literal["auto", "grpc", "shm"]
# Messages carry fewer elements as fast as shared memory does.
SHARED_ELEMENTS = 1 << 16


def first_lane(calls: ServerCalls) -> Lane:
    """The lane of a session that has not joined its job yet: messages, which always work."""
    return MessageLane(calls)


def open_lane(
    calls: ServerCalls,
    member: Member,
    groups: Sequence[GroupInfo],
    wanted: LaneName,
    encoding: MessageEncoding,
    timeout: float,
) -> Lane:
    """The lane for a worker that has joined. Raises `SharedMemoryUnavailable` only if `wanted` is "shm".

    Raises `Unavailable` if the server is away: nothing is known then, and messages would not work either.
    """
    if messages_only(wanted, encoding, groups):
        return MessageLane(calls)
    try:
        return SharedMemoryLane(calls, member, [lay_out(group.parameters) for group in groups], timeout)
    except Unavailable:
        raise
    except OptdError as error:
        # Any other error: messages may work although this does not, and if they do not, they report it.
        if wanted == "shm":
            raise _with_advice(error) from None
        logger.debug("job %s: no shared memory, numbers travel in messages: %s", member.job, error)
        return MessageLane(calls)


def messages_only(
    wanted: LaneName, encoding: MessageEncoding, groups: Sequence[GroupInfo] | Sequence[GroupSpec]
) -> bool:
    """Whether a session that asks for `wanted` will not share memory with the server, even where it could."""
    elements = sum(parameter.size for group in groups for parameter in group.parameters)
    return not (wanted == "shm" or (wanted == "auto" and encoding.exact and elements >= SHARED_ELEMENTS))


def _with_advice(error: OptdError) -> OptdError:
    """The error with what to do about it, if it says that there is no shared memory; else the error itself."""
    if not isinstance(error, SharedMemoryUnavailable):
        return error
    return SharedMemoryUnavailable(why=f"{error.values['why']}; lane='auto' does without")
