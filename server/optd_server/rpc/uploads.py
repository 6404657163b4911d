"""Read the frames of an upload, message by message, and pass them to a function that writes them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from optd_server.engine.offload import Offload
from optd_server.rpc.calls import RequestStream
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, Received

F = TypeVar("F", Frame, Received)
Write = Callable[[Sequence[Frame]], Awaitable[None]]


async def receive(
    requests: RequestStream, first: Any, frames: list[F], write: Callable[[Sequence[F]], Awaitable[None]]
) -> None:
    """Write the frames of `first` and of the messages that follow it, up to the one that is marked as the last.

    Raises what `write` raises, and `InvalidRequest` if the stream ends before its last message.
    """
    message = first
    while True:
        await write(frames)
        frames.clear()  # a caller's list would keep the message while its sender, or the round, takes its time
        if message.last:
            # The caller may now wait long for other workers, whose messages need the budget.
            requests.give_back()
            return
        request = await requests.next()
        if request is None:
            raise InvalidRequest(problem="the stream ended before its last message")
        message, frames = request
        if any(field.name != "last" for field, _ in message.ListFields()):
            raise InvalidRequest(problem="only the first message of an upload may hold more than frames")


def offloaded(write: Callable[[Sequence[Frame]], None], offload: Offload) -> Write:
    """Return a coroutine function that calls `write`, in another thread if the frames are large."""

    async def written(frames: Sequence[Frame]) -> None:
        await offload.copy(sum(frame.count for frame in frames), lambda: write(frames))

    return written
