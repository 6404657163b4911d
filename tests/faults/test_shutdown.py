"""Signals: the server says that it stops, lets go of what runs, and ends with 0, whatever goes on."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of
from e2e.programs import Program, running
from faults.processes import SECONDS, in_background, wait_for
from grpc_health.v1 import health_pb2

import optd
from optd.errors import Unreachable
from optd_wire.v1 import inspection_service_pb2, job_service_pb2, training_service_pb2, worker_service_pb2

pytestmark = pytest.mark.slow

GRACE = 0.8
SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with running(tmp_path, "--grace-seconds", str(GRACE)) as started:
        yield started


@pytest.fixture
def stubs(program: Program) -> Iterator[Plain]:
    with Plain(program.address) as made:
        yield made


def exit_of(program: Program, seconds: float = GRACE + 5) -> int:
    return program.process.wait(seconds)


def train_until_it_ends(address: str, job: str, worker: str, began: threading.Event) -> optd.OptdError:
    """Steps for as long as the server answers; returns what ended it."""
    weights = np.zeros(1000, "f4")
    with optd.connect(address, job=job, worker=worker, timeout=1.0) as session:
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        try:
            while True:
                optimizer.step([np.ones(1000, "f4")])
                began.set()
        except optd.OptdError as error:
            return error


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_42_a_signal_under_load_ends_the_server_with_0(
    program: Program, stubs: Plain, name: str, number: signal.Signals
):
    watch = stubs.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    began = [threading.Event() for _ in range(3)]
    training = [
        in_background(lambda i=i, event=event: train_until_it_ends(program.address, name, f"w{i}", event))
        for i, event in enumerate(began)
    ]
    assert all(event.wait(SECONDS) for event in began)
    program.process.send_signal(number)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert exit_of(program) == 0
    for future in training:
        error = future.result(SECONDS)
        assert isinstance(error, Unreachable), repr(error)
        assert program.address in str(error)
    assert "stopped" in program.log
    assert "Traceback" not in program.log
    assert not program.log_file.with_name("address").exists()


def test_an_idle_server_does_not_wait_for_its_grace(tmp_path: Path):
    with running(tmp_path, "--grace-seconds", "600") as program, Plain(program.address) as stubs:
        assert stubs.healthy()
        program.process.send_signal(signal.SIGTERM)
        assert exit_of(program, SECONDS) == 0


def test_more_signals_do_no_harm(program: Program, stubs: Plain):
    watch = stubs.health.Watch(health_pb2.HealthCheckRequest())
    next(watch)
    program.process.send_signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    for _ in range(3):
        program.process.send_signal(signal.SIGINT)
    assert exit_of(program) == 0
    assert "Traceback" not in program.log


def test_a_push_that_waits_for_its_round_gets_a_clear_error(program: Program, stubs: Plain, name: str):
    """No other push can come any more, so nobody waits for the end of the grace either."""
    spec = job_spec(name, [group("g", {"w": ((4,), "float32")})], workers=2)
    stubs.create(spec, [frame(np.zeros(4, "f4"))])
    head = header(name, "plain", stubs.join(name, "plain"), 1)
    plainly = stubs.training.Push.future(
        iter([training_service_pb2.PushRequest(header=head, last=True)]), timeout=SECONDS
    )
    wait_for(lambda: stubs.list_workers(name)["plain"].waiting, "the push waits")
    program.process.send_signal(signal.SIGTERM)
    error = refusal_of(plainly.exception(SECONDS))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"), error
    assert exit_of(program) == 0


def test_our_client_in_a_round_gets_a_clear_error(program: Program, stubs: Plain, name: str):
    weights = np.zeros(4, "f4")
    with optd.connect(
        program.address, job=name, worker="w0", policy=optd.Sync(workers=2), timeout=GRACE + 0.7
    ) as session:
        optimizer = optd.SGD([weights], session=session)
        stepping = in_background(lambda: optimizer.step([np.ones(4, "f4")]))
        wait_for(lambda: stubs.list_workers(name)["w0"].waiting, "the push waits")
        program.process.send_signal(signal.SIGTERM)
        with pytest.raises(Unreachable) as caught:
            stepping.result(SECONDS)
        assert program.address in str(caught.value)
    assert exit_of(program) == 0
    assert weights.tolist() == [0] * 4


def test_calls_that_last_do_not_outlast_the_grace(program: Program, name: str):
    """Each of them would go on for ever; none keeps the server, and all end in a way that a client understands."""
    with ExitStack() as stack:
        stubs = stack.enter_context(Plain(program.address))
        slow = stack.enter_context(
            Plain(program.address, options=[("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)])
        )
        create_large(stubs, name)
        resting = threading.Event()
        stack.callback(resting.set)
        endings = [
            watching_a_job(stubs, name),
            watching_health(stubs),
            reading(slow, name, program),
            stepping(stubs, name, resting),
            uploading(stubs, name, resting),
        ]
        # Watch, reader, step stream, upload, and the question.
        wait_for(lambda: stubs.status().requests == 5, "all of them are under way")
        endings.append(waiting_to_join(stubs, name))
        wait_for(lambda: stubs.status().requests == 6, "somebody waits for the upload")
        program.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert exit_of(program) == 0
        assert time.monotonic() - began < GRACE + 3
        # None where a stream came to a proper end.
        assert {ending.result(SECONDS) for ending in endings} <= {
            None,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        }
    assert "Traceback" not in program.log
    assert "failed" not in program.log


def create_large(stubs: Plain, name: str, count: int = 4 << 20) -> None:
    frames = [frame(np.zeros(1 << 20, "f4"), offset=at) for at in range(0, count, 1 << 20)]
    stubs.create(job_spec(name, [group("g", {"w": ((count,), "float32")})]), frames)


def end_of(stream: Iterator[object]) -> "Future[grpc.StatusCode | None]":
    """How a call ends that is read to its end, in a thread of its own."""

    def read() -> grpc.StatusCode | None:
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            return refusal_of(error).code
        return None

    return in_background(read)


def watching_a_job(stubs: Plain, name: str) -> "Future[grpc.StatusCode | None]":
    stream = stubs.inspection.WatchJob(inspection_service_pb2.WatchJobRequest(job=name, interval_ms=60_000))
    next(stream)
    return end_of(stream)


def watching_health(stubs: Plain) -> "Future[grpc.StatusCode | None]":
    stream = stubs.health.Watch(health_pb2.HealthCheckRequest())
    next(stream)
    return end_of(stream)


def reading(stubs: Plain, name: str, program: Program) -> "Future[grpc.StatusCode | None]":
    """Takes the first message, and the others when nobody is there any more to send them."""
    stream = stubs.training.Pull(training_service_pb2.PullRequest(job=name))
    next(stream)

    def later() -> Iterator[object]:
        program.process.wait(SECONDS)
        yield from stream

    return end_of(later())


def stepping(stubs: Plain, name: str, resting: threading.Event) -> "Future[grpc.StatusCode | None]":
    epoch = stubs.join(name)

    def requests() -> Iterator[training_service_pb2.StepRequest]:
        yield training_service_pb2.StepRequest(header=header(name, "w0", epoch, 1), last=True)
        resting.wait(SECONDS)

    stream = stubs.training.Step(requests())
    next(stream)
    return end_of(stream)


def uploading(stubs: Plain, name: str, resting: threading.Event) -> "Future[grpc.StatusCode | None]":
    def requests() -> Iterator[job_service_pb2.CreateJobRequest]:
        spec = job_spec(name + ".new", [group("g", {"w": ((4,), "float32")})])
        yield job_service_pb2.CreateJobRequest(spec=spec)
        resting.wait(SECONDS)

    call = stubs.jobs.CreateJob.future(requests())
    return end_of(call.result() for _ in range(1))


def waiting_to_join(stubs: Plain, name: str) -> "Future[grpc.StatusCode | None]":
    request = worker_service_pb2.JoinRequest(job=name + ".new", worker="w0", wait_ms=60_000)
    call = stubs.workers.Join.future(request)
    return end_of(call.result() for _ in range(1))


def test_nothing_is_taken_after_the_signal(program: Program, stubs: Plain, name: str):
    """While one call is let go on, no new one begins, on this connection or another."""
    spec = job_spec(name, [group("g", {"w": ((4,), "float32")})])
    stubs.create(spec, [frame(np.zeros(4, "f4"))])
    watch = stubs.health.Watch(health_pb2.HealthCheckRequest())
    next(watch)
    program.process.send_signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with Plain(program.address) as late, pytest.raises(grpc.RpcError) as caught:
        late.info(name)
    # gRPC cancels what had reached the server, but no handler, when it stopped to listen.
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    with pytest.raises(grpc.RpcError) as caught:
        stubs.info(name)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert exit_of(program) == 0
