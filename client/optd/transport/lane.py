"""Lanes: how the numbers of pushes and pulls travel. Everything else goes by the transport's calls."""

from abc import ABC, abstractmethod

from optd.exchange.row_gradients import may_leave_out
from optd.transport.transport import Delivery, PullRequest, Sink, Source, StepSink, Transport
from optd_wire.values import PullResult, PushHeader, PushResult


class Lane(ABC):
    """Pushes and pulls of one worker. One call at a time; each blocks as the transport's calls do."""

    name: str

    @abstractmethod
    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; waits until they are part of a step."""

    @abstractmethod
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
        """Pushes and pulls.

        Weights that may stay where they are until the next call go to `in_place`, where that is given. `encoding` is
        how messages carry weights, empty for unchanged; gradients come as their frames are made.
        """

    @abstractmethod
    def pull(
        self, request: PullRequest, weights: Sink, timeout: float, *, in_place: Sink | None, encoding: str
    ) -> PullResult:
        """Reads the current weights."""

    @abstractmethod
    def keep(self) -> None:
        """Makes weights that were left in place stay as they are after the hold on them has ended."""

    @abstractmethod
    def close(self) -> None:
        """Gives up what the lane holds; the connection stays."""


class GrpcLane(Lane):
    """Frames in messages."""

    name = "grpc"

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; waits until they are part of a step."""
        # On the stream of steps, which is open already.
        return self._transport.step(header, gradients, Delivery(none=True), _refuse, timeout)[0]

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
        """Pushes and pulls; what is in messages is never in place."""
        delivery = Delivery(encoding=encoding, changed=may_leave_out(gradients))
        return self._transport.step(header, gradients, delivery, weights, timeout)

    def pull(
        self, request: PullRequest, weights: Sink, timeout: float, *, in_place: Sink | None, encoding: str
    ) -> PullResult:
        """Reads the current weights."""
        wanted = PullRequest(
            request.job,
            request.worker,
            request.epoch,
            request.known,
            Delivery(encoding=encoding),
            request.groups,
            request.parameters,
            request.weights,
        )
        return self._transport.pull(wanted, weights, timeout)

    def keep(self) -> None:
        """Nothing is in place."""

    def close(self) -> None:
        """Nothing is held."""


def _refuse(_: object) -> None:
    raise AssertionError("weights came that nobody has asked for")
