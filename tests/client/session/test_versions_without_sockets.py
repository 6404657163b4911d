"""Versions against the fake server: what is lost on the way is asked for again, and what ends stays ended."""

import logging

import numpy as np
import pytest
from faults.processes import in_background, wait_for

import optd
from optd import errors
from optd.session.session import Session
from optd.transport import rpcs
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls

CUT = errors.ConnectionLost(address="fake:1", rpc="WatchVersions", problem="cut")
GRADIENT = {"w": np.full(3, -1.0, "f4")}
SECONDS = 20.0


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def reader(server: FakeServer):
    with Session(ServerCalls(FakeConnection(server)), job="job", worker="r", timeout=5.0) as session:
        yield session


@pytest.fixture
def optimizer(server: FakeServer):
    with Session(ServerCalls(FakeConnection(server)), job="job", worker="w", timeout=5.0) as session:
        yield optd.SGD({"w": np.zeros(3, "f4")}, lr=1.0, session=session)


def test_versions_go_on_after_losses(server: FakeServer, reader: Session, optimizer: optd.SGD, caplog):
    for _ in range(3):
        server.fail(rpcs.WATCH_VERSIONS, CUT, is_handled=False)
    with caplog.at_level(logging.WARNING, "optd"), reader.versions() as versions:
        assert next(versions) == 0
        optimizer.step(GRADIENT)
        assert next(versions) == 1
    lines = [record.getMessage() for record in caplog.records if "WatchVersions" in record.getMessage()]
    assert len(lines) == 1, "one line for each time that the server is away"


@pytest.mark.parametrize(
    "error",
    [
        errors.ShuttingDown(),
        errors.JobReloads(job="job"),
        errors.Stalled(what="the reader of this stream", seconds="30"),
        errors.TooManyRequests(limit="1024"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_stream_that_the_server_ends_is_opened_again(server: FakeServer, reader: Session, optimizer, error):
    server.fail(rpcs.WATCH_VERSIONS, error, is_handled=False)
    with reader.versions() as versions:
        assert next(versions) == 0


def test_a_version_that_is_known_is_not_told_again_but_a_lower_one_is(server: FakeServer, reader: Session, optimizer):
    for _ in range(3):
        optimizer.step(GRADIENT)
    with reader.versions() as versions:
        assert next(versions) == 3
        server.fail(rpcs.WATCH_VERSIONS, CUT, is_handled=False)
        server.wake()
        following = in_background(lambda: next(versions))
        server.jobs["job"].version = 1
        server.wake()
        assert following.result(SECONDS) == 1


def test_a_server_that_stays_away_ends_the_iteration(server: FakeServer, optimizer: optd.SGD):
    with Session(ServerCalls(FakeConnection(server)), job="job", worker="r", timeout=0.2) as session:
        for _ in range(100):
            server.fail(rpcs.WATCH_VERSIONS, CUT, is_handled=False)
        versions = session.versions()
        for _ in range(2):
            with pytest.raises(errors.Unreachable, match="cut"):
                next(versions)


def test_closing_ends_the_retries_and_warns_of_nothing(server: FakeServer, reader: Session, optimizer, caplog):
    with caplog.at_level(logging.WARNING, "optd"):
        versions = reader.versions()
        assert next(versions) == 0
        versions.close()
        assert list(versions) == []
        listening = versions._listening
        wait_for(lambda: not listening.is_alive, "the end of the thread")
    assert not caplog.records


def test_a_pull_that_waits_is_sent_again_with_what_is_left_of_its_time(server: FakeServer, reader: Session, optimizer):
    server.fail(rpcs.PULL, errors.ConnectionLost(address="fake:1", rpc="Pull", problem="cut"), is_handled=True)
    pulled = in_background(lambda: reader.pull(min_version=1))
    optimizer.step(GRADIENT)
    weights = pulled.result(SECONDS)
    assert (weights.version, weights["w"].tolist()) == (1, [1.0, 1.0, 1.0])
    waits = [
        request.wait_ms for rpc, request in server.handled if rpc == "Pull" and request.min_version and request.wait_ms
    ]
    assert waits and all(0 < each <= 5000 for each in waits)


def test_a_wait_in_vain_names_both_versions(server: FakeServer, reader: Session, optimizer: optd.SGD):
    with pytest.raises(
        errors.DeadlineExceeded, match="0.1 s; version 2 of job 'job' was asked for, and it is at version 0"
    ):
        reader.wait(2, timeout=0.1)
