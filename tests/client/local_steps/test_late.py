"""Differences that come too late: they are lost, which is said, and the worker goes on from the global weights."""

import logging

import numpy as np
import pytest

import optd
from optd import errors
from optd.session.session import Session
from optd.transport import rpcs
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls
from optd_wire.messages import from_message
from optd_wire.values import PushHeader

PLAIN = {"algorithm": "sgd", "lr": 1.0}
WHO = {"worker": "w0", "job": "job", "base_version": 0, "version": 1}
LATE = {
    "the next step has been made without it": errors.RoundClosed(**WHO, how="the next step has been made without it"),
    "its staleness is 4, and the policy allows 2": errors.StaleGradient(**WHO, staleness=4, most=2),
}


def opened(server: FakeServer, worker: str = "w0", **how) -> Session:
    return Session(ServerCalls(FakeConnection(server)), job="job", worker=worker, timeout=5.0, **how)


def another_moves(server: FakeServer, by: float) -> None:
    """Another worker's difference moves all weights."""
    with opened(server, "w1") as session:
        weights = {name: np.zeros(2) for name in "abc"}
        local = optd.LocalSteps(weights, every=1, outer=PLAIN, session=session)
        for each in weights.values():
            each[...] += by
        local.step()


@pytest.mark.parametrize("why", LATE)
@pytest.mark.parametrize("delay", [0, 2])
def test_the_worker_says_what_is_lost_and_takes_the_global_weights(caplog, why, delay):
    server, weights = FakeServer(), {name: np.zeros(2) for name in "abc"}
    with (
        opened(server) as session,
        optd.LocalSteps(weights, every=3, delay=delay, outer=PLAIN, session=session) as local,
    ):

        def steps(count: int) -> None:
            for _ in range(count):
                for name in weights:
                    weights[name] += 1
                local.step()

        steps(2)
        another_moves(server, 10)
        server.fail(rpcs.STEP, LATE[why], is_handled=False)
        with caplog.at_level(logging.WARNING, "optd"):
            steps(1 + delay)
        assert [list(each) for each in weights.values()] == [[10, 10]] * 3, "without a share of the local weights"
        said = f"what worker w0 has computed in {3 + delay} local steps is lost ({why}); it goes on from version 1"
        assert said in caplog.text
        assert (local.version, local.unsent) == (1, 0)
        assert (local.last.dropped, local.last.version.version, local.last.applied_version) == (why, 1, 0)
        steps(3 - delay)  # what is computed from now on counts
        local.sync()
        assert (local.last.dropped, local.last.applied_version) == ("", 3)
        assert list(server.jobs["job"].frames()[0].values) == [13 - delay] * 6


def test_in_a_sync_job_the_next_fragment_is_that_of_the_next_round(caplog):
    """A worker that joins late, or misses rounds, sends what the others send next."""
    server, weights = FakeServer(), {name: np.zeros(2) for name in "abc"}
    options = {"every": 3, "fragments": 3, "outer": PLAIN}
    with opened(server, policy=optd.Sync(workers=1)) as session:
        local = optd.LocalSteps(weights, session=session, **options)
        for _ in range(4):
            local.step()
    assert sent(server) == [1, 2, 3, 1]
    with opened(server) as session:
        local = optd.LocalSteps(weights, session=session, **options)
        local.step()
        assert sent(server)[-1] == 2, "the job is at version 4"
        another_moves(server, 1)
        another_moves(server, 1)
        server.fail(rpcs.STEP, LATE["the next step has been made without it"], is_handled=False)
        local.step()
        assert list(weights["c"]) == [2, 2]
        local.step()
        assert sent(server)[-1] == 2, "the job is at version 7"


def test_what_is_under_way_is_not_sent_again():
    """Two fragments are under way when the first turns out to be late: the third one follows."""
    server, weights = FakeServer(), {name: np.zeros(2) for name in "abc"}
    options = {"every": 3, "fragments": 3, "delay": 2, "outer": PLAIN}
    with opened(server, policy=optd.Sync(workers=1)) as session:
        local = optd.LocalSteps(weights, session=session, **options)
        another_moves(server, 1)  # the round of the first fragment
        server.fail(rpcs.STEP, LATE["the next step has been made without it"], is_handled=False)
        for _ in range(4):
            local.step()
        local.close()
    assert [each for each in sent(server) if each] == [2, 3, 1]


@pytest.mark.parametrize(
    ("why", "delay", "expected"),
    [
        ("the next step has been made without it", 2, [6, 10, 15, 21]),
        ("the next step has been made without it", 0, [6, 12, 18, 24]),
        ("its staleness is 4, and the policy allows 2", 2, [6, 12, 18, 24]),
    ],
)
def test_with_a_delay_a_worker_that_missed_a_round_sends_earlier(monkeypatch, why, delay, expected):
    """Nothing in its steps waits for the others, so it would stay behind them. Without a delay each sync waits."""
    server, sends, step = FakeServer(), [], 0
    with opened(server) as session:
        local = optd.LocalSteps({"w": np.zeros(2)}, every=6, delay=delay, session=session)
        courier = local._worker._courier
        send = courier.send
        monkeypatch.setattr(courier, "send", lambda work: sends.append(step) or send(work))
        server.fail(rpcs.STEP, LATE[why], is_handled=False)
        for step in range(1, 25):  # noqa: B007 - `send` notes it
            local.step()
        local.close()
    assert sends == expected


def test_in_an_async_job_each_worker_keeps_its_order():
    server, weights = FakeServer(), {name: np.zeros(2) for name in "abc"}
    with opened(server) as session:
        local = optd.LocalSteps(weights, every=3, fragments=3, session=session)
        local.step()
        another_moves(server, 1)
        local.step()
        local.step()
    assert [each for each in sent(server) if each] == [1, 2, 3]


def test_each_fragment_has_the_version_of_its_own_weights():
    server, weights = FakeServer(), {name: np.zeros(2) for name in "ab"}
    with opened(server) as session:
        local = optd.LocalSteps(weights, every=4, fragments=2, outer=PLAIN, session=session)
        for _ in range(8):
            local.step()
    headers = [from_message(request.header, PushHeader) for name, request in server.handled if name == "Step"]
    assert [(header.fragment, header.base_version) for header in headers] == [(1, 0), (2, 0), (1, 1), (2, 2)]


def sent(server: FakeServer) -> list[int]:
    """The fragments of all pushes that the server has handled, from 1 on; 0 for whole models."""
    return [request.header.fragment for name, request in server.handled if name == "Step"]
