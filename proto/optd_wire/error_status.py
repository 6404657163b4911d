"""Errors as `google.rpc.Status`: one ErrorInfo with the reason, and all values in its metadata.

An error after which the call may be tried again has a RetryInfo besides, with the delay.
"""

from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from optd_wire.errors import BY_REASON, OptdError

DOMAIN = "optd"


def to_status(error: OptdError) -> status_pb2.Status:
    """The status that carries `error`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.values)
    status = status_pb2.Status(code=int(error.code), message=str(error))
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> OptdError | None:
    """The error that `status` carries; None if it has no reason that this version knows."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            error_class = BY_REASON.get(info.reason)
            if error_class is None:
                return None
            try:
                error = error_class(**info.metadata)
            except (KeyError, IndexError):  # the template of another version takes other values
                return None
            delay = _retry_delay(status)
            if delay is not None:
                error.retry_after = delay
            return error
    return None


def _retry_delay(status: status_pb2.Status) -> float | None:
    """The seconds of the RetryInfo that `status` carries; None if it has none, or one that makes no sense."""
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            seconds = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
            return seconds if seconds >= 0 else None
    return None
