"""A good client beside bad ones: each of its steps is made, once, while they do what they can."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import psutil
import pytest
from contract.plain import Plain
from faults.processes import spawned

import optd
from optd.local import LocalServer, local

MIB = 1 << 20
STEPS = 60
ELEMENTS = 10_000


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server with little to spare: 16 MiB of requests, and a second for who stands still."""
    limits = ("--max-inflight-bytes", "16MiB", "--max-message-bytes", "8MiB", "--idle-seconds", "1")
    with local(*limits, "--no-shared-memory") as running:
        yield running


@contextmanager
def beside(address: str, how: str) -> Iterator[None]:
    """The block runs beside a client that behaves badly, all the time."""
    with Plain(address) as plain:
        with spawned("abuser.py", address, how) as abuser:
            assert abuser.stdin is not None
            assert abuser.stdout is not None
            assert abuser.stdout.readline() == "begun\n"
            yield
            assert abuser.poll() is None
            abuser.stdin.close()
            assert int(abuser.stdout.readline()) > 0
        plain.delete(f"abused.{how}")
        assert plain.healthy()


def train(address: str, job: str, steps: int = STEPS) -> None:
    weights = np.zeros(ELEMENTS, "f4")
    with optd.connect(address, job=job, worker="good") as session:
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        for step in range(1, steps + 1):
            optimizer.step([np.ones(ELEMENTS, "f4")])
            assert session.version == step
            assert weights[0] == weights[-1] == -step


@pytest.mark.slow
def test_24_a_good_client_goes_on_beside_one_that_never_reads(server: LocalServer, name: str):
    with beside(server.address, "never-reads"):
        train(server.address, name)


@pytest.mark.slow
def test_32_a_good_client_goes_on_beside_one_that_sends_garbage(server: LocalServer, name: str):
    with beside(server.address, "sends-garbage"):
        train(server.address, name)


@pytest.mark.slow
def test_39_a_good_client_goes_on_beside_one_that_floods(server: LocalServer, name: str):
    before = resident(server)
    with beside(server.address, "floods"):
        train(server.address, name)
        assert resident(server) - before < 200 * MIB


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_39_a_good_client_goes_on_beside_all_of_them_for_long(server: LocalServer, name: str):
    with ExitStack() as stack:
        for how in ("never-reads", "sends-garbage", "floods"):
            stack.enter_context(beside(server.address, how))
        train(server.address, f"{name}.first", 1000)
        before = resident(server)
        train(server.address, f"{name}.second", 10_000)
        assert resident(server) - before < 100 * MIB


def resident(server: LocalServer) -> int:
    return psutil.Process(server.process.pid).memory_info().rss
