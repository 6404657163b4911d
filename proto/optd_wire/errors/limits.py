"""Errors about what a server keeps within: memory, sizes, the number of requests, and time."""

from optd_wire.errors.base import Expired, ResourceExhausted


class MemoryExceeded(ResourceExhausted):
    """The planned memory of a job exceeds what the server may use."""

    reason = "MEMORY_EXCEEDED"
    template = "{what} needs {needed} bytes, {free} of the server's {limit} are free (--max-memory-bytes)"


class MessageTooLarge(ResourceExhausted):
    """A message is larger than its receiver accepts."""

    reason = "MESSAGE_TOO_LARGE"
    template = "a message is too large: {problem} (--max-message-bytes)"


class TooManyRequests(ResourceExhausted):
    """The server is handling as many requests as it may. The status says after how long to try again."""

    reason = "TOO_MANY_REQUESTS"
    retry_after = 0.5
    template = "the server is handling its limit of {limit} requests (--max-requests); try again later"


class TooManyBytes(ResourceExhausted):
    """The server or the job holds as many bytes of requests as it may. The status says after how long to try again."""

    reason = "TOO_MANY_BYTES"
    template = "requests fill the {limit} bytes of {whose} ({setting}), waited {seconds} s for room; try again later"
    retry_after = 1.0


class Stalled(Expired):
    """A stream made no progress for too long."""

    reason = "STALLED"
    template = "{what} moved no frame for {seconds} s"


class TooSlow(Expired):
    """A reader of weights delayed a step, which needed the memory that the reader was reading."""

    reason = "TOO_SLOW"
    template = (
        "the weights of version {version} were read for more than {seconds} s while a step waited for their memory; "
        "pull again"
    )
