"""The frames of an upload, message by message, to wherever they are written."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from optd_server.engine.offload import Offload
from optd_server.rpc.calls import Requests
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, Received

F = TypeVar("F", Frame, Received)
Write = Callable[[Sequence[Frame]], Awaitable[None]]


async def receive(
    requests: Requests, first: Any, frames: list[F], write: Callable[[Sequence[F]], Awaitable[None]]
) -> None:
    """Writes the frames of `first` and of what follows it, up to the message that says it is the last.

    Raises what `write` raises, and `InvalidRequest` for a stream that ends before: it has broken off.
    """
    message = first
    while True:
        await write(frames)
        if message.last:
            # What comes next may be a long wait for others, who need the room.
            requests.give_back()
            return
        request = await requests.next()
        if request is None:
            raise InvalidRequest(problem="the stream ended before its last message")
        message, frames = request
        if any(field.name != "last" for field, _ in message.ListFields()):
            raise InvalidRequest(problem="only the first message of an upload may hold more than frames")


async def skip(requests: Requests, first: Any) -> None:
    """Reads an upload to its end without looking at it, so that the stream is ready for the next one."""
    message = first
    while not message.last:
        request = await requests.next()
        if request is None:
            return
        message, _ = request
    requests.give_back()


def offloaded(write: Callable[[Sequence[Frame]], None], offload: Offload) -> Write:
    """`write`, done off the event loop where the frames are large."""

    async def written(frames: Sequence[Frame]) -> None:
        await offload.copy(sum(frame.count for frame in frames), lambda: write(frames))

    return written
