"""The open stream of steps: what ends it, and that the next step goes on."""

import queue
import threading
import time

import numpy as np
import pytest
from faults.processes import wait_for

import optd
from optd import errors
from optd.local import local
from optd.params.flat_view import FlatView
from optd.session.retry import with_retries
from optd.transport.requests import Delivery
from optd.transport.server_calls import ServerCalls
from optd.transport.step_stream import StepStream
from optd_wire.values import Async, GroupSpec, JobSpec, ParameterSpec, PushHeader

SIZE = 6
SPECS = (ParameterSpec("w", (SIZE,), "float32"),)
VIEW = FlatView([SPECS])


def source(value):
    return VIEW.source([[np.full(SIZE, value, np.float32)]])


class PlayedCall:
    """A call that answers each request with itself, and ends when it is told to."""

    def __init__(self, requests):
        self._answers = queue.SimpleQueue()
        self._active = True
        threading.Thread(target=self._serve, args=(requests,), daemon=True).start()

    def _serve(self, requests):
        for request in requests:
            if request != b"no answer":
                self._answers.put(request)
        self.cancel()

    def __next__(self):
        answer = self._answers.get()
        if answer is None:
            raise StopIteration
        return answer

    def is_active(self):
        return self._active

    def cancel(self):
        self._active = False
        self._answers.put(None)


def test_messages_and_answers_follow_one_another():
    stream = StepStream(PlayedCall)
    for number in range(3):
        stream.send(iter([b"%d" % number, b"."]))
        assert (stream.receive(10), stream.receive(10)) == (b"%d" % number, b".")
    assert stream.open
    assert not stream.late
    stream.cancel()
    assert not stream.open


def test_a_wait_that_takes_too_long_ends_the_stream():
    early, late = StepStream(PlayedCall), StepStream(PlayedCall)
    late.send(iter([b"no answer"]))
    began = time.monotonic()
    assert late.receive(0.2) is None
    assert 0.2 <= time.monotonic() - began < 5
    assert (late.late, late.open, early.late, early.open) == (True, False, False, True)
    # A second one whose time is up before that of the first, while the first waits.
    waits = threading.Thread(target=lambda: (early.send(iter([b"no answer"])), early.receive(60)), daemon=True)
    waits.start()
    other = StepStream(PlayedCall)
    other.send(iter([b"no answer"]))
    assert other.receive(0.1) is None
    assert (other.late, early.late) == (True, False)
    early.cancel()
    waits.join()


def test_what_a_request_raises_is_raised_where_its_answer_is_waited_for():
    def requests():
        yield b"no answer"
        raise errors.EncodingOverflow(encoding="float16", bound=65504.0, value=1e9)

    stream = StepStream(PlayedCall)
    stream.send(requests())
    with pytest.raises(errors.EncodingOverflow):
        stream.receive(10)
    assert not stream.open


# With a server


class Stepping:
    """A transport with workers in a job of its own."""

    def __init__(self, address, name):
        self.transport = ServerCalls.over_grpc(address)
        self.name = name
        self.epochs = {}
        self.sequences = {}

    def create(self):
        spec = JobSpec(self.name, "sgd", {"lr": 1.0}, (GroupSpec("g", {}, SPECS),), Async())
        self.transport.create_job(spec, source(0), 10)

    def join(self, worker):
        self.epochs[worker] = self.transport.join(self.name, worker, None, 1, 10).epoch
        self.sequences[worker] = 0

    def step(self, worker, gradients, timeout=10):
        out = np.empty(SIZE, np.float32)
        header = PushHeader(self.name, worker, self.epochs[worker], self.sequences[worker] + 1, 0)

        def write(frames):
            VIEW.write(frames, [[out]])

        pushed, pulled = self.transport.step(header, gradients, Delivery(), write, timeout)
        self.sequences[worker] += 1
        return pushed.version.version, pulled.version.version, out.tolist()


@pytest.fixture
def stepping(server, name):
    made = Stepping(server.address, name)
    made.create()
    made.join("w0")
    yield made
    made.transport.close()


def test_a_source_that_fails_breaks_its_step_off_and_the_next_one_is_made(stepping):
    def broken():
        yield from source(1)()
        raise errors.EncodingOverflow(encoding="float16", bound=65504.0, value=1e9)

    assert stepping.step("w0", source(1))[0] == 1
    for _ in range(2):
        with pytest.raises(errors.EncodingOverflow, match="float16"):
            stepping.step("w0", broken)
    assert stepping.step("w0", source(1)) == (2, 2, [-2] * SIZE)


def test_workers_of_two_threads_share_a_stream(stepping):
    stepping.join("w1")
    threads = [
        threading.Thread(target=lambda worker=worker: [stepping.step(worker, source(1)) for _ in range(30)])
        for worker in ("w0", "w1")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stepping.step("w0", source(0)) == (61, 61, [-60] * SIZE)


def test_a_deadline_in_mid_step_and_a_later_step(server, name):
    """A round waits for a second worker, longer than the first one does."""
    policy = optd.Sync(workers=2)
    weights = [{"w": np.zeros(3)} for _ in range(2)]
    with (
        optd.connect(server.address, job=name, worker="w0", timeout=0.4, policy=policy) as hasty,
        optd.connect(server.address, job=name, worker="w1", timeout=30, policy=policy) as patient,
    ):
        first, second = (
            optd.SGD(arrays, lr=1.0, session=session) for arrays, session in zip(weights, (hasty, patient), strict=True)
        )
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded, match=r"Step .* 0\.4 s.*its round waited for w1"):
            first.step({"w": np.full(3, 8.0)})
        assert time.monotonic() - began < 5
        # Until the server has heard of the end of the call, another push may still make a round with this one.
        wait_for(lambda: not any(info.waiting for info in patient.workers()), "the late one is withdrawn")
        hasty.timeout = 30
        other = threading.Thread(target=second.step, args=({"w": np.full(3, 4.0)},))
        other.start()
        first.step({"w": np.full(3, 2.0)})
        other.join()
        assert first.version == 1
        assert weights[0]["w"].tolist() == weights[1]["w"].tolist() == [-3, -3, -3], "the late one was withdrawn"


@pytest.mark.slow
def test_a_server_that_is_started_again_between_two_steps(name):
    with local() as first:
        port = first.address.rpartition(":")[2]
        stepping = Stepping(first.address, name)
        stepping.create()
        stepping.join("w0")
        stepping.step("w0", source(1))
        first.stop()
        with pytest.raises(errors.Unavailable):
            stepping.step("w0", source(1))
        with local("--port", port):
            with_retries(stepping.transport.server_status, address=first.address, timeout=20)
            with pytest.raises(errors.UnknownJob):
                stepping.step("w0", source(1))
            stepping.create()
            stepping.join("w0")
            assert stepping.step("w0", source(1)) == (1, 1, [-1] * SIZE)
    stepping.transport.close()
