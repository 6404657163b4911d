"""Many clients that lose their server at the same moment, and find it again together."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from contract.plain import Plain, frame, group, job_spec
from faults.durable import Durable
from faults.processes import SECONDS, wait_for

from optd.session.retry import with_retries
from optd.transport import channel
from optd.transport.server_calls import ServerCalls
from optd_wire.frames import Frame
from optd_wire.values import PushHeader, PushResult

MIB = 1 << 20
CLIENTS = 200
BOUND = 60.0
"""Seconds in which all must have been answered, on a machine that does much else. Alone they take about three."""


@pytest.fixture(autouse=True)
def own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would share one connection among all channels of a process."""
    monkeypatch.setattr(channel, "_OPTIONS", [*channel._OPTIONS, ("grpc.use_local_subchannel_pool", 1)])


class Client:
    """A worker reduced to its calls and its retries, as light as can be."""

    def __init__(self, address: str, job: str, worker: str) -> None:
        self.calls = ServerCalls.over_grpc(address)
        self._job, self._worker = job, worker
        self.epoch = self.calls.join(job, worker, None, 0, SECONDS).epoch

    def push(self, sequence: int) -> PushResult:
        header = PushHeader(self._job, self._worker, self.epoch, sequence, 0)
        ones = Frame.of(0, 0, np.ones(4, "f4"))
        return with_retries(
            lambda left: self.calls.push(header, lambda: iter([[ones]]), left),
            address=self.calls.address,
            timeout=BOUND,
        )


def established(server: Durable) -> int:
    found = psutil.Process(server.server.process.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED for each in found)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(30, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_25_200_clients_come_back_at_once_and_each_push_counts_once(tmp_path: Path, name: str, kills: int):
    flags = ("--durability", "log", "--fsync", "commit", "--no-shared-memory", "--kernels", "numpy")
    with Durable(tmp_path, *flags) as server, ExitStack() as stack:
        with Plain(server.address) as plain:
            spec = job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0)
            plain.create(spec, [frame(np.zeros(4, "f4"))])
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        clients = list(pool.map(lambda index: Client(server.address, name, f"w{index}"), range(CLIENTS)))
        for client in clients:
            stack.callback(client.calls.close)
        assert established(server) >= CLIENTS
        assert applied([client.push(1) for client in clients]) == set(range(1, CLIENTS + 1))
        for kill in range(1, kills + 1):
            together = threading.Barrier(CLIENTS + 1)
            waiting = [pool.submit(push_together, client, kill + 1, together) for client in clients]
            server.kill()
            together.wait(SECONDS)
            server.restart()
            before = resident(server)
            results = [future.result(BOUND) for future in waiting]
            assert applied(results) == set(range(kill * CLIENTS + 1, (kill + 1) * CLIENTS + 1))
            assert resident(server) - before < 150 * MIB
        with Plain(server.address) as plain:
            assert plain.weights(name)["w"].tolist() == [-(kills + 1.0) * CLIENTS] * 4
            assert plain.summary(name).workers == CLIENTS
            wait_for(lambda: plain.status().requests == 1, "no call is left over")


def push_together(client: Client, sequence: int, together: threading.Barrier) -> PushResult:
    together.wait(SECONDS)
    return client.push(sequence)


def applied(results: list[PushResult]) -> set[int]:
    return {result.applied_version for result in results}


def resident(server: Durable) -> int:
    return psutil.Process(server.server.process.pid).memory_info().rss
