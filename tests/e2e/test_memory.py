"""What a server's process takes of the system: a job's memory before its first step, and nothing after its end."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import optd
from optd.local import LocalServer, local

pytestmark = pytest.mark.slow

ELEMENTS = 12 << 20
WEIGHTS = 4 * ELEMENTS
"""Bytes of the weights; so much take a gradient, and each of two states of Adam, too."""
SLACK = 36 << 20
"""Bytes that calls and threads take the first time, whatever a job's size."""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server that nobody has asked for memory yet."""
    with local() as running:
        yield running


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_jobs_that_come_and_go_stay_within_their_plan(server: LocalServer, name: str, lane: str):
    weights, gradient = np.full(ELEMENTS, 0.5, "f4"), np.ones(ELEMENTS, "f4")
    with optd.connect(server.address, job="watcher") as watcher:

        def status() -> tuple[int, int]:
            found = watcher._transport.server_status(20)
            return found.resident_bytes, found.planned_bytes

        before = status()[0]
        for _ in range(4):
            with optd.connect(server.address, job=name, worker="w", lane=lane) as session:
                optimizer = optd.Adam({"w": weights}, lr=0.1, session=session)
                for _ in range(2):
                    optimizer.step({"w": gradient})
                taken, planned = status()
                assert taken - before <= 1.15 * planned + SLACK
                session._transport.delete_job(name, 20)
                # The call of the steps is still open, and refers to what it was about.
                wait_until(lambda: status()[0] - before <= SLACK)
                assert status()[0] - before <= SLACK


@pytest.mark.parametrize(("lane", "copies"), [("grpc", 3), ("shm", 5)])
def test_a_first_step_finds_its_memory(server: LocalServer, name: str, lane: str, copies: int):
    """Weights and two states at once; on shm a gradient and the next weights, too, which in messages come soon."""
    weights = np.full(ELEMENTS, 0.5, "f4")
    with optd.connect(server.address, job=name, worker="w", lane=lane) as session:

        def taken() -> int:
            return session._transport.server_status(20).resident_bytes

        before = taken()
        optimizer = optd.Adam({"w": weights}, lr=0.1, session=session)
        assert taken() - before >= copies * WEIGHTS - SLACK
        wait_until(lambda: taken() - before >= 5 * WEIGHTS - SLACK)
        at_registration = taken()
        assert at_registration - before >= 5 * WEIGHTS - SLACK
        optimizer.step({"w": np.ones(ELEMENTS, "f4")})
        assert taken() - at_registration <= SLACK
        session._transport.delete_job(name, 20)


def test_where_numbers_can_come_in_messages_only_registration_finds_all(name: str):
    with local("--no-shared-memory") as alone, optd.connect(alone.address, job=name, worker="w") as session:

        def taken() -> int:
            return session._transport.server_status(20).resident_bytes

        before = taken()
        optd.Adam({"w": np.full(ELEMENTS, 0.5, "f4")}, lr=0.1, session=session)
        assert taken() - before >= 5 * WEIGHTS - SLACK
