"""What the calls of every service have in common."""

from optd.transport.connection import Connection


class Calls:
    """RPCs over one connection. Safe to use from several threads.

    Every method blocks until its answer is there or `timeout` seconds have passed, and raises an `OptdError`: the one
    that the server raised, or one of `Connection`. No method retries.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return self._connection.address
