"""A session against the fake server: joining, pushing, retrying, fencing, leaving, and keeping the lease."""

import gc
import os
import socket
import threading

import numpy as np
import pytest

import optd
from optd import errors
from optd.session.session import Session
from optd.transport import rpcs
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls
from optd_wire import values
from optd_wire.messages import to_message
from optd_wire.v1 import inspection_service_pb2

LOST = errors.ConnectionLost(address="fake:1", rpc="Step", problem="cut")
LATE = errors.DeadlineExceeded(rpc="Step", address="fake:1", seconds=1, hint="")
HALF = {"w": np.full(3, 0.5, "f4"), "b": np.full((2, 2), 0.5)}


class Clock:
    """Seconds that only a test moves on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def server(clock):
    return FakeServer(lease_seconds=60.0, clock=clock)


def opened(server, worker="w0", **how):
    return Session(ServerCalls(FakeConnection(server)), job="job", worker=worker, timeout=5.0, **how)


def weights(start=0.0):
    return {"w": np.full(3, start, "f4"), "b": np.full((2, 2), start)}


def training(session, start=0.0):
    arrays = weights(start)
    return optd.SGD(arrays, lr=1.0, session=session), arrays


def calls(server, *names):
    return [name for name, _ in server.handled if name in names]


# Joining


def test_the_first_worker_creates_the_job_with_its_weights_and_the_second_attaches(server):
    with opened(server) as first, opened(server, "w1") as second:
        training(first, start=7.0)
        optimizer, arrays = training(second, start=1.0)
        assert {name: array.ravel()[0] for name, array in arrays.items()} == {"w": 7.0, "b": 7.0}
        assert optimizer.version == 0
        assert [worker.name for worker in first.workers()] == ["w0", "w1"]
        assert second.other_workers() == ("w0",)


@pytest.mark.parametrize("is_handled", [False, True])
@pytest.mark.parametrize("rpc", [rpcs.CREATE_JOB, rpcs.JOIN], ids=lambda rpc: rpc.name)
def test_a_call_lost_while_joining_is_made_again_and_creates_one_job(server, rpc, is_handled):
    server.fail(rpc, LOST, is_handled=is_handled)
    with opened(server) as session:
        optimizer, _ = training(session, start=3.0)
        assert list(server.jobs) == ["job"]
        optimizer.step(HALF)
        assert optimizer.weights["w"].tolist() == [2.5] * 3


def test_what_to_do_about_a_job_that_exists(server):
    with opened(server) as first:
        training(first, start=1.0)
    with opened(server, if_exists="fail") as second, pytest.raises(errors.JobExists, match="exists already"):
        training(second)
    with opened(server, if_exists="replace") as third:
        _, arrays = training(third, start=9.0)
        assert arrays["w"][0] == 9.0
        with opened(server, "w1", if_exists="replace") as fourth, pytest.raises(errors.JobInUse, match="w0"):
            training(fourth)


def test_a_job_of_another_algorithm_is_refused(server):
    with opened(server) as first, opened(server, "w1") as second:
        training(first)
        with pytest.raises(errors.JobMismatch):
            optd.Adam(weights(), session=second)


# Pushing


def test_a_step_brings_the_new_weights_of_every_dtype(server):
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        optimizer.step(HALF)
        optimizer.push(HALF)
        assert (arrays["w"].tolist(), optimizer.version) == ([1.5] * 3, 1)
        optimizer.pull()
        assert (arrays["b"].tolist(), optimizer.version) == ([[1.0, 1.0], [1.0, 1.0]], 2)
        assert session.lane == "grpc"


@pytest.mark.parametrize("call", ["step", "push"])
@pytest.mark.parametrize(
    ("lost", "is_repeat"),
    [([], False), ([False], False), ([True], True), ([False, True], True), ([True, True, False], True)],
    ids=["nothing", "request", "reply", "request, reply", "two replies, request"],
)
def test_a_push_counts_once_whatever_is_lost(server, call, lost, is_repeat):
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        for is_handled in lost:
            server.fail(rpcs.STEP, LOST, is_handled=is_handled)
        result = getattr(optimizer, call)(HALF)
        assert (result.applied_version, result.repeat) == (1, is_repeat)
        optimizer.step(HALF)
        assert (server.jobs["job"].version, arrays["w"].tolist()) == (2, [1.0] * 3)


@pytest.mark.parametrize("is_handled", [False, True])
def test_a_push_whose_fate_is_unknown_is_fenced_by_a_new_epoch(server, is_handled):
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        server.fail(rpcs.STEP, LATE, is_handled=is_handled)
        with pytest.raises(errors.DeadlineExceeded):
            optimizer.step(HALF)
        assert (session.in_doubt, session.epoch) == (True, 1)
        optimizer.step(HALF)
        assert (session.in_doubt, session.epoch) == (False, 2)
        assert arrays["w"].tolist() == [1.0 if is_handled else 1.5] * 3


def test_an_encoding_that_fails_changes_nothing(server):
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        with pytest.raises(errors.EncodingOverflow):
            optimizer.step({"w": np.array([1, 1, 1e30], "f4"), "b": None}, encoding="float16")
        assert server.jobs["job"].version == 0
        optimizer.step(HALF)
        assert arrays["w"].tolist() == [1.5] * 3


# Fencing


def test_a_second_session_of_the_same_name_fences_the_first(server):
    with opened(server) as first:
        optimizer, _ = training(first)
        of_another_process = ServerCalls(FakeConnection(server))
        assert of_another_process.join("job", "w0", None, 0, 5.0).epoch == 2
        with pytest.raises(errors.StaleEpoch, match="joined again and has epoch 2"):
            optimizer.step(HALF)
        assert server.jobs["job"].version == 0


@pytest.mark.parametrize("call", ["step", "push", "pull"])
def test_18_a_worker_whose_lease_ran_out_joins_again_and_goes_on(server, clock, caplog, call):
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        optimizer.step(HALF)
        clock.now += 61
        getattr(optimizer, call)(*([] if call == "pull" else [HALF]))
        assert session.epoch == 2
        optimizer.step(HALF)
        assert (session.epoch, arrays["w"].tolist()) == (2, [1.0 if call == "pull" else 0.5] * 3)
        (line,) = [record.getMessage() for record in caplog.records]
        assert "the lease of worker w0 ran out (60 s" in line
        assert "under epoch 2 and goes on" in line
        assert ("it sends its push again" in line) == (call != "pull")


@pytest.mark.parametrize("call", ["step", "push"])
def test_18_a_push_that_was_applied_before_the_lease_ran_out_is_not_sent_again(server, clock, caplog, call):
    """Its answer was lost on the way, and the process was stopped before it could ask again."""

    class Stopped(errors.ConnectionLost):
        def __init__(self):
            super().__init__(address="fake:1", rpc="Step", problem="cut")
            clock.now += 61

    sgd = to_message(values.AlgorithmInfo("sgd", "", (), (), ()))
    listed = inspection_service_pb2.ListAlgorithmsResponse(algorithms=[sgd])
    server.handlers[rpcs.LIST_ALGORITHMS.path] = lambda *_: (listed, ())
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        lost = server.handlers[rpcs.STEP.path]

        def step(request, frames):
            server.handlers[rpcs.STEP.path] = lost
            lost(request, frames)
            raise Stopped

        server.handlers[rpcs.STEP.path] = step
        result = getattr(optimizer, call)(HALF)
        assert (result.repeat, result.applied_version, session.epoch) == (True, 1, 2)
        assert "its push had been applied" in caplog.text
        assert arrays["w"].tolist() == [1.5 if call == "step" else 2.0] * 3
        optimizer.step(HALF)
        assert (server.jobs["job"].version, arrays["w"].tolist()) == (2, [1.0] * 3)


def test_18_a_worker_whose_name_was_taken_while_it_was_stopped_does_not_take_it_back(server, clock):
    with opened(server) as first:
        optimizer, _ = training(first)
        clock.now += 61
        assert ServerCalls(FakeConnection(server)).join("job", "w0", None, 0, 5.0).epoch == 2
        for call in (optimizer.pull, lambda: optimizer.step(HALF), lambda: optimizer.push(HALF)):
            with pytest.raises(errors.StaleEpoch, match="joined again and has epoch 2"):
                call()
        assert (server.jobs["job"].workers["w0"].epoch, server.jobs["job"].version) == (2, 0)


def test_18_a_push_in_doubt_does_not_take_the_name_back_either(server):
    with opened(server) as first:
        optimizer, _ = training(first)
        server.fail(rpcs.STEP, LATE, is_handled=False)
        with pytest.raises(errors.DeadlineExceeded):
            optimizer.step(HALF)
        ServerCalls(FakeConnection(server)).join("job", "w0", None, 0, 5.0)
        with pytest.raises(errors.StaleEpoch, match="joined again and has epoch 2"):
            optimizer.step(HALF)
        assert server.jobs["job"].workers["w0"].epoch == 2


@pytest.mark.parametrize("error", [LOST, LATE], ids=["lost", "late"])
def test_18_a_lost_answer_to_joining_again_is_not_taken_for_another_session(server, clock, error):
    with opened(server) as session:
        optimizer, arrays = training(session, start=2.0)
        clock.now += 61
        server.fail(rpcs.JOIN, error, is_handled=True)
        if error is LATE:
            with pytest.raises(errors.DeadlineExceeded):
                optimizer.step(HALF)
        optimizer.step(HALF)
        assert (session.epoch, server.jobs["job"].version, arrays["w"].tolist()) == (3, 1, [1.5] * 3)


def test_a_job_that_was_replaced_is_not_taken_for_the_old_one(server):
    with opened(server) as session:
        optimizer, _ = training(session)
        server.fail(rpcs.STEP, LATE, is_handled=False)
        with pytest.raises(errors.DeadlineExceeded):
            optimizer.step(HALF)
        del server.jobs["job"]
        with opened(server, "w1") as another:
            training(another)
            with pytest.raises(errors.JobReplaced):
                optimizer.step(HALF)


# Leaving


def test_closing_leaves_the_job_and_ends_the_connection(server):
    connection = FakeConnection(server)
    session = Session(ServerCalls(connection), job="job", worker="w0", timeout=5.0)
    optimizer, _ = training(session)
    session.close()
    session.close()
    assert calls(server, "Leave") == ["Leave"]
    assert connection.is_closed
    assert [worker.active for worker in server.jobs["job"].worker_infos()] == [False]
    with pytest.raises(errors.SessionClosed):
        optimizer.step(HALF)


@pytest.mark.parametrize("problem", [LOST, LATE])
def test_a_leave_that_is_lost_does_not_keep_a_session_open(server, problem):
    connection = FakeConnection(server)
    session = Session(ServerCalls(connection), job="job", worker="w0", timeout=5.0)
    training(session)
    server.fail(rpcs.LEAVE, problem, is_handled=False)
    session.close()
    assert connection.is_closed


def test_a_session_that_nobody_holds_leaves_its_job(server):
    left = threading.Event()
    leave = server.handlers[rpcs.LEAVE.path]

    def noting(request, frames):
        left.set()
        return leave(request, frames)

    server.handlers[rpcs.LEAVE.path] = noting
    optimizer, _ = training(opened(server))
    assert not left.is_set()
    del optimizer
    gc.collect()  # an optimizer is part of a reference cycle
    assert left.wait(30)


# The lease


def test_a_worker_tells_of_its_process_and_how_its_part_ended(server):
    first, second = opened(server), opened(server, "w1")
    training(first), training(second)
    first._renew()
    second.close()
    told = [request for name, request in server.handled if name in ("Join", "RenewLease")]
    assert len(told) >= 3
    assert {(request.host, request.pid) for request in told} == {(socket.gethostname(), os.getpid())}
    found = {worker.name: (worker.pid, worker.active, worker.ended) for worker in first.workers()}
    assert found == {"w0": (os.getpid(), True, ""), "w1": (os.getpid(), False, values.LEFT)}
    assert first._open_rounds() == ()
    first.close()


def test_a_lease_is_renewed_while_nothing_else_is_called():
    server = FakeServer(lease_seconds=0.06)
    renewals = threading.Semaphore(0)
    renew = server.handlers[rpcs.RENEW_LEASE.path]

    def noting(request, frames):
        answer = renew(request, frames)
        renewals.release()
        return answer

    server.handlers[rpcs.RENEW_LEASE.path] = noting
    # What is lost is renewed with the next beat.
    server.fail(rpcs.RENEW_LEASE, LOST, is_handled=True)
    with opened(server) as session:
        optimizer, _ = training(session)
        for _ in range(5):
            assert renewals.acquire(timeout=30)
        optimizer.step(HALF)
