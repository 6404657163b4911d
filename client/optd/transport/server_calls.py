"""All RPCs of a server, over one connection."""

from __future__ import annotations

from optd.transport.calls.checkpoints import CheckpointCalls
from optd.transport.calls.inspection import InspectionCalls
from optd.transport.calls.jobs import JobCalls
from optd.transport.calls.state import StateCalls
from optd.transport.calls.training import TrainingCalls
from optd.transport.calls.workers import WorkerCalls
from optd.transport.channel import Channel
from optd.transport.tls import TLS


class ServerCalls(JobCalls, WorkerCalls, TrainingCalls, StateCalls, CheckpointCalls, InspectionCalls):
    """Every call that a server answers. Owns its connection: `close` ends that, too."""

    @classmethod
    def over_grpc(cls, address: str, *, token: str | None = None, tls: TLS | None = None) -> ServerCalls:
        """The calls of the server at HOST:PORT. Does not connect yet: the first call does."""
        return cls(Channel(address, token=token, tls=tls))

    def beside(self) -> ServerCalls:
        """The calls of the same server over another connection, which numbers on this one cannot hold up."""
        return type(self)(self._connection.beside())

    def close(self) -> None:
        """Ends the connection; calls under way raise `ConnectionLost`."""
        self.end_steps()
        self._connection.close()
