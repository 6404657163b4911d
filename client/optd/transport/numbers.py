"""How numbers pass between the arrays of a session and its lane: sources that give frames, sinks that take them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from optd_wire.frames import Frame, Outgoing, Received
from optd_wire.values import ReadStateResult

HEADER_BYTES = 8192
"""Room in a message for everything but its frames."""
Source = Callable[[], Iterator[Sequence[Outgoing]]]
"""Numbers to send. Each call starts again and yields lists of frames; a list suits one message.

The frames refer to the caller's arrays, which must stay as they are until the call that sends them has returned.
"""
Sink = Callable[[Sequence[Frame]], None]
"""Takes received frames, those of one message at a time. Their payloads are valid only during the call."""
StepSink = Callable[[Sequence[Received]], None]
"""As `Sink`; row frames may be among the frames."""
StateSink = Callable[[ReadStateResult], Sink]
"""Gets the result, which tells what state will come, and returns what takes its frames. A retry calls it again."""


class RowSource(ABC):
    """A `Source` with gradients of rows among the whole ones, which travel in messages on every lane."""

    has_weights: bool
    """Whether the sender holds the weights of the base version, so that an answer may leave out unchanged ones."""

    @abstractmethod
    def __call__(self) -> Iterator[Sequence[Outgoing]]:
        """As a `Source`; the row frames come last."""


def may_leave_out(source: Source) -> bool:
    """Whether the answer to a step of these gradients may leave out weights that have not changed."""
    return isinstance(source, RowSource) and source.has_weights
