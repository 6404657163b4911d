"""The calls of TrainingService: pushes, pulls and steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from optd.transport import rpcs
from optd.transport.calls.calls import Calls
from optd.transport.connection import Connection, Steps, Watch
from optd.transport.numbers import Sink, Source, StepSink
from optd.transport.requests import Delivery, PullRequest, RowsRequest
from optd_wire.encodings.registry import encoding_named
from optd_wire.errors import UnexpectedStatus
from optd_wire.frames import Received
from optd_wire.messages import from_message, to_message
from optd_wire.row_frames import RowFrame
from optd_wire.v1 import training_service_pb2 as training_pb
from optd_wire.v1.tensor_pb2 import Encoding
from optd_wire.values import JobVersion, PullResult, PushHeader, PushResult

M = TypeVar("M", bound=Message)
LONGEST_WAIT_MS = (1 << 32) - 1


class VersionWatch:
    """A stream of versions; see `Watch`."""

    def __init__(self, watch: Watch[training_pb.WatchVersionsResponse]) -> None:
        self._watch = watch

    def receive(self) -> JobVersion:
        """The next version; blocks until there is one."""
        return from_message(self._watch.receive().version, JobVersion)

    def cancel(self) -> None:
        """Ends the stream."""
        self._watch.cancel()


class TrainingCalls(Calls):
    """Pushes, pulls and steps; steps share one stream, which opens with the first."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._step_lock = threading.Lock()
        self._steps: Steps[training_pb.StepRequest, training_pb.StepResponse] | None = None

    def end_steps(self) -> None:
        """Closes the stream of steps; a step under way raises `ConnectionLost`."""
        if self._steps is not None:
            self._steps.close()

    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; waits until they are part of a step."""
        first = training_pb.PushRequest(header=to_message(header))
        response = self._connection.upload(rpcs.PUSH, first, gradients(), timeout)
        return from_message(response.result, PushResult)

    def pull(self, request: PullRequest, weights: Sink, timeout: float) -> PullResult:
        """Reads the current weights; a request without a worker reads without taking part in the job."""
        message = training_pb.PullRequest(
            job=request.job,
            worker=request.worker,
            epoch=request.epoch,
            delivery=_delivery(request.delivery),
            groups=request.groups,
            parameters=request.parameters,
            weights=request.weights,
            min_version=request.min_version,
            wait_ms=min(int(request.wait_seconds * 1000), LONGEST_WAIT_MS),
        )
        if request.known is not None:
            message.known_version = request.known.version
            message.known_revision = request.known.revision
        responses = self._connection.download(rpcs.PULL, message, timeout)
        return from_message(_first_then_frames(responses, weights).result, PullResult)

    def pull_rows(self, request: RowsRequest, rows: Callable[[list[RowFrame]], None], timeout: float) -> JobVersion:
        """Reads rows of a parameter's current weights; `rows` takes those of one message at a time."""
        message = training_pb.PullRowsRequest(
            job=request.job,
            parameter=request.parameter,
            ids=request.ids.astype("<u8").tobytes(),
            encoding=_enum_name(request.encoding),
            weights=request.weights,
        )
        first: training_pb.PullRowsResponse | None = None
        answers = self._connection.download(rpcs.PULL_ROWS, message, timeout)
        for answer, frames in answers:
            first = first or answer
            rows(frames)
        if first is None:
            raise UnexpectedStatus(rpc="PullRows", address=self.address, status="OK", problem="it sent nothing")
        return from_message(first.version, JobVersion)

    def watch_versions(self, job: str, known: int | None) -> VersionWatch:
        """Opens a stream of the job's versions; the current one comes at once, unless it is `known`."""
        request = training_pb.WatchVersionsRequest(job=job, known_version=known)
        return VersionWatch(self._connection.watch(rpcs.WATCH_VERSIONS, request))

    def step(
        self, header: PushHeader, gradients: Source, delivery: Delivery, weights: StepSink, timeout: float
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls in one call, on a stream that stays open. One step at a time: other threads wait.

        The arrays that `gradients` refers to must stay as they are until this returns or raises. `weights` takes what
        comes, while it comes; after an error it may have taken a part.
        """
        first = training_pb.StepRequest(header=to_message(header), delivery=_delivery(delivery))
        with self._step_lock:
            stream = self._stream()
            try:
                stream.send(first, gradients())
                response = _first_then_frames(self._step_answers(stream, timeout), weights)
            except BaseException:
                # The rest of its answer must not be taken for the answer to the next step.
                stream.cancel()
                raise
        return from_message(response.pushed, PushResult), from_message(response.pulled, PullResult)

    def release(self, job: str, worker: str, epoch: int) -> None:
        """Ends the hold on shared weights. Does not wait for the server."""
        message = training_pb.StepRequest(release=training_pb.Release(job=job, worker=worker, epoch=epoch))
        with self._step_lock:
            self._stream().tell(message)

    def _stream(self) -> Steps[training_pb.StepRequest, training_pb.StepResponse]:
        if self._steps is None or not self._steps.is_open:
            self._steps = self._connection.steps(rpcs.STEP)
        return self._steps

    def _step_answers(
        self, stream: Steps[training_pb.StepRequest, training_pb.StepResponse], timeout: float
    ) -> Iterator[tuple[training_pb.StepResponse, list[Received]]]:
        """The messages that answer one step."""
        deadline = time.monotonic() + timeout
        last = False
        while not last:
            message, frames = stream.receive(deadline, timeout)
            last = message.last
            yield message, frames


def _delivery(delivery: Delivery) -> training_pb.Delivery:
    return training_pb.Delivery(
        none=delivery.none,
        encoding=_enum_name(delivery.encoding),
        shared=delivery.shared,
        in_place=delivery.in_place,
        changed=delivery.changed,
    )


def _enum_name(encoding: str) -> str | None:
    """The contract's name for an encoding; None for unchanged."""
    return Encoding.Name(encoding_named(encoding).number) if encoding else None


def _first_then_frames(responses: Iterator[tuple[M, list[Any]]], sink: Callable[[list[Any]], None]) -> M:
    """The first message of an answer; the frames of all its messages go to `sink`."""
    first: M | None = None
    for message, frames in responses:
        if first is None:
            first = message
        if frames:
            sink(frames)
    if first is None:
        raise UnexpectedStatus(rpc="stream", address="the server", status="OK", problem="it sent nothing")
    return first
