"""The `grpc` lane: numbers as frames in messages."""

from dataclasses import replace

from optd.transport.lane import Lane, refuse_weights
from optd.transport.numbers import Sink, Source, StepSink, may_leave_out
from optd.transport.requests import Delivery, PullRequest
from optd.transport.server_calls import ServerCalls
from optd_wire.values import PullResult, PushHeader, PushResult


class MessageLane(Lane):
    """Frames in messages."""

    name = "grpc"

    def __init__(self, calls: ServerCalls) -> None:
        self._calls = calls

    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; blocks until they are part of a step."""
        # On the stream of steps, which is open already.
        return self._calls.step(header, gradients, Delivery(none=True), refuse_weights, timeout)[0]

    def step(
        self,
        header: PushHeader,
        gradients: Source,
        weights: StepSink,
        timeout: float,
        *,
        in_place: Sink | None,
        encoding: str,
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls; weights in messages are never in place."""
        delivery = Delivery(encoding=encoding, changed=may_leave_out(gradients))
        return self._calls.step(header, gradients, delivery, weights, timeout)

    def pull(
        self, request: PullRequest, weights: Sink, timeout: float, *, in_place: Sink | None, encoding: str
    ) -> PullResult:
        """Reads the current weights."""
        return self._calls.pull(replace(request, delivery=Delivery(encoding=encoding)), weights, timeout)

    def keep(self) -> None:
        """Nothing is in place."""

    def close(self) -> None:
        """Nothing is held."""
