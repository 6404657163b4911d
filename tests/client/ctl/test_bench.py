"""`bench` as a real process: its figures, what it leaves out, and that it leaves no job behind."""

import os
import pty
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import fields

import pytest

from optd.ctl import measuring
from optd.ctl.commands.bench import ENCODINGS, LANES, NOT_MEASURED, SMALL, Bench
from optd.ctl.measuring import Measurement, Way
from optd.local import LocalServer, local
from optd.transport.server_calls import ServerCalls

from .conftest import SECONDS, Optctl, finish

QUICK = ("--elements", "5000", "--seconds", "0.02")
PREFIX = "optctl-bench-"


def jobs_of(server: LocalServer) -> list[str]:
    transport = ServerCalls.over_grpc(server.address)
    try:
        return [job.name for job in transport.list_jobs(10) if job.name.startswith(PREFIX)]
    finally:
        transport.close()


@pytest.mark.slow
def test_figures_for_each_lane_and_encoding(optctl: Optctl, server: LocalServer):
    shown, document = optctl.both("bench", *QUICK)
    assert list(document) == [field.name for field in fields(Bench)]
    assert (document["server"], document["server_version"]) == (server.address, "0.1.0")
    assert document["not_measured"] == list(NOT_MEASURED)
    assert all(list(one) == [field.name for field in fields(Measurement)] for one in document["measurements"])
    done = [(one["lane"], one["encoding"], one["elements"]) for one in document["measurements"]]
    left = document["skipped"]
    assert left == []
    assert done == [
        *[(lane, "float32", SMALL) for lane in LANES],
        *[("grpc", encoding, 5000) for encoding in ENCODINGS],
        ("shm", "float32", 5000),
    ]
    for one in document["measurements"]:
        assert one["steps"] >= 3
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert one["steps_per_second"] > 0 < one["gigabytes_per_second"]

    heading, first, *_ = shown.lines
    assert heading.split() == ["lane", "encoding", "elements", "p50", "ms", "p99", "ms", "steps/s", "GB/s", "steps"]
    assert first.split()[:3] == [LANES[0], "float32", "1,000"]
    assert shown.lines[-len(NOT_MEASURED) :] == [f"Not measured: {what}." for what in NOT_MEASURED]
    assert jobs_of(server) == []


def test_only_what_is_asked_for(optctl: Optctl):
    ended = optctl("bench", *QUICK, "--lane", "grpc", "--encoding", "float32", "-o", "json")
    assert [(one["lane"], one["elements"]) for one in ended.document["measurements"]] == [
        ("grpc", 1000),
        ("grpc", 5000),
    ]
    assert ended.document["skipped"] == []


@pytest.mark.slow
def test_what_a_lane_does_not_carry_is_left_out_with_its_reason(optctl: Optctl):
    ended = optctl("bench", *QUICK, "--lane", "shm", "--encoding", "int8", "-o", "json")
    assert [(one["lane"], one["elements"]) for one in ended.document["measurements"]] == [("shm", SMALL)]
    (skipped,) = ended.document["skipped"]
    assert skipped["reason"] == "lane 'shm' carries numbers unchanged; encoding 'int8' is for lane 'grpc'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lane", "pigeon"], f"optctl: no lane 'pigeon'; there are {', '.join(LANES)}\n"),
        (["--encoding", "morse"], f"optctl: no encoding 'morse'; there are {', '.join(ENCODINGS)}\n"),
        (["--seconds", "0"], "must be in [0.001, 86400] seconds, got 0"),
        (["--elements", "0"], "Invalid value for '--elements'"),
    ],
)
def test_a_wrong_command_line_ends_with_2(optctl: Optctl, arguments: list[str], message: str):
    ended = optctl("bench", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.slow
def test_a_server_that_is_not_there_ends_it_with_3(optctl: Optctl):
    ended = optctl("bench", "--server", "127.0.0.1:1", "--timeout", "0.3")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("optctl: ")


@pytest.fixture(scope="module")
def cramped() -> Iterator[LocalServer]:
    """A server with room for the small job, not for the large one."""
    with local("--max-memory-bytes", str(1 << 20)) as running:
        yield running


@pytest.mark.slow
def test_what_the_server_refuses_is_left_out_with_its_reason(cramped: LocalServer):
    arguments = ("bench", "--elements", "1000000", "--seconds", "0.02", "--lane", "grpc", "--encoding", "float32")
    shown, document = Optctl(cramped.address).both(*arguments)
    assert [one["elements"] for one in document["measurements"]] == [SMALL]
    (skipped,) = document["skipped"]
    assert (skipped["lane"], skipped["encoding"]) == ("grpc", "float32")
    assert re.search(r"needs \d{8} bytes", skipped["reason"])
    (line,) = (line for line in shown.lines if line.startswith("left out: grpc float32: "))
    assert re.search(r"needs \d{8} bytes", line)
    assert jobs_of(cramped) == []


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_leaves_no_job(optctl: Optctl, server: LocalServer):
    with optctl.start("bench", "--seconds", "600", "-o", "json") as running:
        wait_for_job(server)
        running.send_signal(signal.SIGINT)
        ended = finish(running)
    assert (ended.code, ended.out, ended.err) == (130, "", "")
    assert jobs_of(server) == []


@pytest.mark.slow
def test_a_bar_on_a_terminal_that_gives_way_to_the_table(optctl: Optctl, server: LocalServer):
    ours, theirs = pty.openpty()
    with optctl.start("bench", "--elements", "5000", "--seconds", "0.3", stdin=theirs, stdout=theirs) as running:
        os.close(theirs)
        seen = ""
        while f"Not measured: {NOT_MEASURED[0]}" not in seen:
            seen += os.read(ours, 65536).decode(errors="replace")
        assert "grpc float32, 1,000 elements" in seen
        assert seen.index("━") < seen.index("p50 ms")
        assert running.wait(SECONDS) == 0
    os.close(ours)


def wait_for_job(server: LocalServer) -> None:
    deadline = time.monotonic() + SECONDS
    while not jobs_of(server):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_summary_counts_gradients_and_weights():
    found = measuring.summary(Way("grpc", "int8"), 1_000_000, [0.010] * 99 + [0.020])
    assert found.p50_ms == pytest.approx(10)
    assert 10.0 < found.p99_ms < 20.0
    assert found.steps_per_second == pytest.approx(100 / 1.01)
    assert found.gigabytes_per_second == pytest.approx(found.steps_per_second * 8e6 / 1e9)
