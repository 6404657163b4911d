"""A job that fills its bytes: its messages wait, then are refused with a delay; other jobs do not notice."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of, refused
from faults.processes import SECONDS, in_background, wait_for
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import optd
from optd.local import LocalServer, local
from optd_wire.v1 import inspection_service_pb2

pytestmark = pytest.mark.slow

MIB = 1 << 20
COUNT = 120_000
"""Numbers of a gradient: 480 kB, which do not fit into a job's MiB beside what `filling` holds."""
WATCH = "/optd.v1.InspectionService/WatchJob"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local(*("--max-inflight-bytes", "4MiB", "--max-job-inflight-bytes", "1MiB", "--idle-seconds", "1")) as running:
        yield running


def create(plain: Plain, name: str) -> None:
    spec = job_spec(name, [group("g", {"w": ((COUNT,), "float32")})], lr=1.0)
    plain.create(spec, [frame(np.zeros(COUNT, "f4"))])


@contextmanager
def filling(plain: Plain, job: str) -> Iterator[Any]:
    """Keep 700 kB of a job's bytes in flight: a call that goes on holds its request, here one with an unknown field."""
    request = inspection_service_pb2.WatchJobRequest(job=job, interval_ms=60_000).SerializeToString()
    padding = 700_000
    unknown = b"\xfa\x01" + bytes([padding & 0x7F | 0x80, padding >> 7 & 0x7F | 0x80, padding >> 14]) + bytes(padding)
    watch: Any = plain.channel.unary_stream(WATCH)(request + unknown, timeout=60)
    next(watch)
    try:
        yield watch
    finally:
        watch.cancel()


def test_39_a_job_over_its_bytes_is_refused_with_a_delay_and_others_are_not(server: LocalServer, name: str):
    other = f"{name}.other"
    with Plain(server.address) as plain, Plain(server.address) as neighbour:
        for job in (name, other):
            create(plain, job)
        epoch = plain.join(name)
        with filling(plain, name):
            with pytest.raises(grpc.RpcError) as caught:
                plain.push(header(name, "w0", epoch, 1), [frame(np.ones(COUNT, "f4"))], timeout=1)
            refusal = refusal_of(caught.value)
            assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refusal.reason == "TOO_MANY_BYTES"
            assert all(part in refusal.text for part in (name, str(MIB), "--max-job-inflight-bytes"))
            assert delay_of(caught.value) == 1.0
            pushed = neighbour.push(header(other, "w0", neighbour.join(other), 1), [frame(np.ones(COUNT, "f4"))])
            assert pushed.applied_version == 1
            # What is small never waits: questions, joins, and what keeps a lease.
            assert plain.join(name, "another")
            assert plain.info(name).version.version == 0
        assert plain.push(header(name, "w0", epoch, 1), [frame(np.ones(COUNT, "f4"))]).applied_version == 1


def delay_of(error: Any) -> float | None:
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return None


def test_39_all_jobs_together_have_a_bound_too(server: LocalServer, name: str):
    jobs = [f"{name}.{index}" for index in range(6)]
    with Plain(server.address) as plain, ExitStack() as stack:
        for job in jobs:
            create(plain, job)
        epoch = plain.join(jobs[-1])
        for job in jobs[:-1]:
            stack.enter_context(filling(plain, job))
        with refused("TOO_MANY_BYTES", "the server", 4 * MIB, "(--max-inflight-bytes)"):
            big = frame(np.ones(3 * COUNT // 2, "f4"))  # refused for its bytes before it is for its length
            plain.push(header(jobs[-1], "w0", epoch, 1), [big], timeout=1)
        stack.close()
        assert plain.push(header(jobs[-1], "w0", epoch, 1), [frame(np.ones(COUNT, "f4"))]).applied_version == 1


def test_39_a_message_waits_up_to_the_deadline_of_its_call(server: LocalServer, name: str):
    """Longer than a stream may stand still, which on this server is a second."""
    with Plain(server.address) as plain:
        create(plain, name)
        first, second = plain.join(name, "w0"), plain.join(name, "w1")
        with filling(plain, name) as watch:
            push = in_background(
                lambda: plain.push(header(name, "w0", first, 1), [frame(np.ones(COUNT, "f4"))], timeout=60)
            )
            with refused("TOO_MANY_BYTES"):
                plain.push(header(name, "w1", second, 1), [frame(np.ones(COUNT, "f4"))], timeout=2)
            assert not push.done()
            watch.cancel()
            assert push.result(SECONDS).applied_version == 1


def test_39_our_client_waits_as_it_is_told_and_says_so_once(
    server: LocalServer, name: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, logger="optd")
    weights = np.zeros(COUNT, "f4")
    with (
        optd.connect(server.address, job=name, worker="w0", lane="grpc", timeout=60) as session,
        Plain(server.address) as plain,
    ):
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        with filling(plain, name):
            step = in_background(lambda: optimizer.step([np.ones(COUNT, "f4")]))
            # Refused twice, each time after the second for which nothing may stand still on this server.
            wait_for(lambda: plain.rejections(name).counts["TOO_MANY_BYTES"] >= 2, "two refusals")
            assert not step.done()
        step.result(SECONDS)
        assert (session.version, weights.tolist()) == (1, [-1.0] * COUNT)
        said = [record.getMessage() for record in caplog.records if "is full" in record.getMessage()]
        assert len(said) == 1, said
        assert all(part in said[0] for part in (name, server.address, "--max-job-inflight-bytes"))
