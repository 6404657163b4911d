"""What all errors of optd have, and the eight kinds that they belong to.

A kind has the canonical code of its errors and is caught as what Python calls such a failure. The errors themselves
are in the other files of this folder, by topic.
"""

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical codes of google.rpc.Code that optd uses."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


LONGEST_VALUE = 400  # bytes

BY_REASON: dict[str, type["OptdError"]] = {}
"""Every error that has a reason, filled by the class statements of this folder."""


class OptdError(Exception):
    """The root of all errors: a canonical code, a reason, and the values in the message.

    A concrete class declares `reason` and `template`. Its constructor takes the values of the template, by name.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = ""
    template: ClassVar[str] = ""
    retry_after: float | None = None
    """Seconds after which the same call may succeed; None where trying again is no use, or where nobody knows when.
    An error that a server has sent has the server's delay."""

    def __init_subclass__(cls) -> None:
        if "reason" in vars(cls):
            if cls.reason in BY_REASON:
                raise TypeError(f"{cls.__name__} and {BY_REASON[cls.reason].__name__} share {cls.reason}")
            BY_REASON[cls.reason] = cls

    def __init__(self, **values: object) -> None:
        self.values = {name: _shortened(value) for name, value in values.items()}
        super().__init__(self.template.format(**self.values))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.values), vars(self)


def _shortened(value: object) -> str:
    """The value as text, cut so that it fits into the trailers of a reply, whatever a caller has sent."""
    encoded = str(value).encode("utf-8", "backslashreplace")
    if len(encoded) > LONGEST_VALUE:
        encoded = encoded[: LONGEST_VALUE - 3] + b"..."
    return encoded.decode("utf-8", "ignore")


def _rebuild(cls: type[OptdError], values: dict[str, str]) -> OptdError:
    return cls(**values)


class InvalidArgument(OptdError, ValueError):
    """The call is wrong, whatever the server holds. Nothing has changed."""

    code = Code.INVALID_ARGUMENT


class Unauthenticated(OptdError, PermissionError):
    """The call carries no token that the server accepts."""

    code = Code.UNAUTHENTICATED


class NotFound(OptdError, LookupError):
    """The server does not hold what the call names."""

    code = Code.NOT_FOUND


class Conflict(OptdError):
    """The call does not fit what the server or the session holds now. Nothing has changed."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(OptdError):
    """The call would exceed a limit of the server."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(OptdError, ConnectionError):
    """The server cannot be reached, is not ready, or is shutting down."""

    code = Code.UNAVAILABLE


class Expired(OptdError, TimeoutError):
    """The call was not done in time."""

    code = Code.DEADLINE_EXCEEDED


class Internal(OptdError):
    """The server has a fault, or its answer is one that the client does not understand."""
