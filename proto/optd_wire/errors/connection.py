"""Errors about reaching a server and about its answers."""

from optd_wire.errors.base import Expired, Internal, InvalidArgument, Unavailable


class NoAddress(InvalidArgument):
    """Neither session, server nor environment gives the address of a server."""

    reason = "NO_ADDRESS"
    template = "no server given: pass session=, server='HOST:PORT', or set OPTD_SERVER"


class Unreachable(Unavailable):
    """Nothing answers at the address."""

    reason = "UNREACHABLE"
    template = "no optd server answers at {address}: tried for {seconds} s ({problem})"


class ConnectionLost(Unavailable):
    """The connection broke during a call."""

    reason = "CONNECTION_LOST"
    template = "the connection to {address} was lost in {rpc}: {problem}"


class ShuttingDown(Unavailable):
    """The server is shutting down and takes no new calls. The status says after how long to try again."""

    reason = "SHUTTING_DOWN"
    retry_after = 0.5
    template = "the server is shutting down"


class DeadlineExceeded(Expired):
    """A call did not end within its timeout."""

    reason = "DEADLINE_EXCEEDED"
    template = "{rpc} at {address} took longer than {seconds} s{hint}"


class InternalError(Internal):
    """The server failed in an unforeseen way. Its log has the details under `incident`."""

    reason = "INTERNAL"
    template = "the server failed; its log has the details under incident {incident}"


class UnexpectedStatus(Internal):
    """A call ended with a status that has no reason of optd: from a proxy, or from a server of another version."""

    reason = "UNEXPECTED_STATUS"
    template = "{rpc} at {address} ended with {status}: {problem}"
