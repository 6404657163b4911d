"""Errors as `google.rpc.Status`: one ErrorInfo with the reason, and all values in its metadata."""

from google.rpc import error_details_pb2, status_pb2

from optd_wire.errors import BY_REASON, OptdError

DOMAIN = "optd"


def to_status(error: OptdError) -> status_pb2.Status:
    """The status that carries `error`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.values)
    status = status_pb2.Status(code=int(error.code), message=str(error))
    status.details.add().Pack(info)
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
                return error_class(**info.metadata)
            except (KeyError, IndexError):  # the template of another version takes other values
                return None
    return None
