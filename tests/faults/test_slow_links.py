"""Bulk data on a slow link: pushes and pulls that take many times as long as a lease, and no lease is lost."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec
from faults.processes import wait_for
from faults.slow_link import SlowLink

import optd
from optd.local import LocalServer, local
from optd_wire.v1 import training_service_pb2

LEASE = 1.0
LINK = 10e6
"""Bits a second."""


@pytest.fixture(scope="module")
def strict() -> Iterator[LocalServer]:
    with local("--lease-seconds", str(LEASE)) as running:
        yield running


def push_and_pull(server: LocalServer, name: str, seconds: float, lease: float) -> None:
    """Pushes for about `seconds` over a slow link, then pulls as long."""
    elements = int(seconds * LINK / 8 / 4)
    with (
        SlowLink(server.address, bits_per_second=LINK) as link,
        optd.connect(server.address, job=name, worker="near") as near,
        optd.connect(link.address, job=name, worker="far", lane="grpc") as far,
        Plain(server.address) as plain,
    ):
        optd.SGD({"w": np.zeros(elements, "f4")}, lr=1.0, session=near)
        weights = np.zeros(elements, "f4")
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=far)
        began = time.monotonic()
        optimizer.push({"w": np.ones(elements, "f4")})
        pushed = time.monotonic()
        optimizer.pull()
        pulled = time.monotonic()
        assert min(pushed - began, pulled - pushed) > max(5 * lease, 0.8 * seconds), "the link is not slow"
        assert weights[0] == weights[-1] == -1
        assert far.epoch == 1, "its lease was lost, and it has joined again"
        assert plain.list_workers(name)["far"].active
        assert plain.rejections(name).counts == {}
        # The heartbeat's calls go over a connection of their own.
        assert link.connections == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_lease_is_lost_while_a_push_or_a_pull_takes_many_times_as_long(strict: LocalServer, name: str) -> None:
    push_and_pull(strict, name, 8.0, LEASE)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_lease_of_ten_seconds_is_lost_in_a_push_of_a_minute(name: str) -> None:
    with local("--lease-seconds", "10") as server:
        push_and_pull(server, name, 60.0, 10.0)


@pytest.mark.slow
def test_each_message_of_a_push_renews_the_lease(strict: LocalServer, name: str) -> None:
    """Of a worker without a heartbeat, which sends its gradient piece by piece for several lease lengths."""
    with Plain(strict.address) as plain:
        plain.create(job_spec(name, [group("g", {"w": ((8,), "float32")})], lr=1.0), [frame(np.zeros(8, "f4"))])
        epoch = plain.join(name, "w0")

        def left() -> int:
            return plain.list_workers(name)["w0"].lease_remaining_ms

        def pieces() -> Iterator[object]:
            yield training_service_pb2.PushRequest(header=header(name, "w0", epoch, 1))
            for offset in range(8):
                after = left() - 300
                wait_for(lambda after=after: left() < after, "a third of the lease passes")
                is_last = offset == 7
                yield training_service_pb2.PushRequest(frames=[frame(np.ones(1, "f4"), offset=offset)], last=is_last)

        plain.training.Push(pieces(), timeout=60)
        assert plain.weights(name)["w"].tolist() == [-1] * 8
        worker = plain.list_workers(name)["w0"]
        assert (worker.epoch, worker.pushes) == (epoch, 1)
