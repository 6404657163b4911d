"""`explain`, `workers` and `watch` of jobs in which workers wait, die, lag and are refused."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from faults.processes import in_background, wait_for, worker

import optd
from optd.ctl import rounds
from optd.ctl.advice import ADVICE, advice
from optd.ctl.commands.explain import RECENT_MS, Explanation
from optd.ctl.commands.explain import _facts as explanation_facts
from optd.ctl.commands.workers import notes
from optd.local import LocalServer, local
from optd.transport.server_calls import ServerCalls
from optd_wire import errors
from optd_wire.values import (
    LEFT,
    REPLACED,
    ROLLED_BACK,
    Async,
    JobReport,
    JobSummary,
    JobVersion,
    Rejection,
    RoundInfo,
    StalenessSummary,
    WorkerInfo,
)

from .conftest import Optctl

NOW = 10_000_000
QUIET = WorkerInfo("w0", 1, True, 900, 1, 1, 0, 0, False, "grpc")


def facts(lines: list[str]) -> dict[str, str]:
    """The names and values of a screen; what has no name of its own is joined to what is above it."""
    found: dict[str, str] = {}
    last = ""
    for line in lines:
        name, _, value = (part.strip() for part in line.partition("  "))
        last = name or last
        found[last] = f"{found[last]} {value}" if last in found else value
    return found


@pytest.fixture(scope="module")
def strict() -> Iterator[LocalServer]:
    """A server with short leases."""
    with local("--lease-seconds", "1.5") as running:
        yield running


def in_columns(strict: LocalServer, *arguments: str) -> list[str]:
    """What `optctl` prints on a terminal of 100 columns."""
    environment = Optctl(strict.address, {"COLUMNS": "100"}).environment
    command = [sys.executable, "-m", "optd.ctl", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_a_round_that_waits_for_a_dead_worker(strict: LocalServer, name: str):
    optctl = Optctl(strict.address)
    policy = optd.Sync(workers=2)
    with optd.connect(strict.address, job=name, worker="w0", policy=policy, timeout=60) as session:
        optimizer = optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session)
        with worker(strict.address, name, "w1", 2) as other:
            waits = in_background(lambda: optimizer.step([np.ones(4, "f4")]))
            transport = ServerCalls.over_grpc(strict.address)
            wait_for(lambda: [one.arrived for one in transport.list_rounds(name, 10)] == [("w0",)], "its push waits")
            shown = facts(optctl("explain", name).lines)
            assert shown["policy"].startswith("sync of 2: a step takes one push of each of 2 workers")
            assert shown["round"].startswith("step 1, open for ")
            assert (shown["in it"], shown["released by"]) == ("w0", "pushes of w1")
            assert shown["workers"].startswith("2 with a lease: w0 (")
            other.process.kill()
            wait_for(lambda: not transport.list_rounds(name, 10)[0].missing[0].active, "its lease runs out")
        ended, document = optctl.both("explain", name)
        shown = facts(ended.lines)
        place = f"w1 (host {os.uname().nodename}, pid {other.process.pid}, lease lost "
        assert shown["waits for"].startswith(place) and shown["lost"].startswith(place)
        assert shown["released by"].endswith("; w1 was lost")
        assert (shown["refused"], shown["durability"]) == ("nothing", "nothing is kept: the job ends with its server")
        assert list(document) == [field.name for field in fields(Explanation)]
        assert [one["arrived"] for one in document["report"]["rounds"]] == [["w0"]]

        table = in_columns(strict, "workers", name)
        assert max(map(len, table)) <= 100
        assert [line.split()[0] for line in table[1:4]] == ["worker", "w0", "w1"]
        assert "lease lost" in table[3] and f":{other.process.pid}" in table[3]
        line = optctl("watch", name, "--count", "1").out
        assert "  step 1, open for " in line and f"; in it w0; waits for {place}" in line

        with worker(strict.address, name, "w1", 2) as successor:
            successor.tell("step", gradient=1)
            assert waits.result(30).version.version == 1
            assert successor.outcome()["version"] == 1
        assert facts(optctl("explain", name).lines)["round"] == "no push waits for others"
        transport.close()


@pytest.mark.slow
def test_a_quorum_a_grace_window_and_a_worker_that_comes_too_late(strict: LocalServer, name: str):
    optctl = Optctl(strict.address)
    policy = optd.Sync(workers=3, quorum=2, grace=4.0)
    with ExitStack() as open_sessions:
        made = [
            open_sessions.enter_context(
                optd.connect(strict.address, job=name, worker=f"w{number}", policy=policy, timeout=60)
            )
            for number in range(3)
        ]
        slow, *others = [optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session) for session in made]
        transport = open_sessions.enter_context(closing(ServerCalls.over_grpc(strict.address)))
        steps = [in_background(lambda one=one: one.step([np.ones(4, "f4")])) for one in others]
        wait_for(lambda: [one.arrived for one in transport.list_rounds(name, 10)] == [("w1", "w2")], "a quorum")
        (found,) = transport.list_rounds(name, 10)
        assert 0 < found.deadline_unix_ms - found.opened_unix_ms <= 4001
        assert [(each.name, each.active) for each in found.missing] == [("w0", True)]
        line = optctl("watch", name, "--count", "1").out
        assert all(step.result(30).version.version == 1 for step in steps)
        assert "; in it w1 and w2; waits for w0 (" in line and "; at the latest in " in line
        with pytest.raises(errors.RoundClosed):
            slow.push([np.ones(4, "f4")])
        shown = facts(optctl("explain", name).lines)
        assert "w0 was not in 1 round, which closed without a push of it" in shown["lags"]
        assert "or of 2 of them, after a grace window of 4 s" in shown["policy"]
        row = next(line for line in optctl("workers", name).lines if line.startswith("w0 "))
        assert re.search(r" +0/0/0 +\d+ +1 +1 +grpc ", row), row


@pytest.mark.slow
def test_refusals_have_what_to_do_about_them(optctl: Optctl, train: Callable):
    job = train()
    job.step()
    for _ in range(2):
        with pytest.raises(errors.NonfiniteGradient):
            job.optimizer.step({"w": np.array([1, np.nan, 1])})
    shown = optctl("explain", job.name)
    refused = facts(shown.lines)["refused"]
    assert refused.startswith("2 NONFINITE_GRADIENT of w0, the last ")
    assert f"has nan at flat index 1; the push was refused to do: {ADVICE['NONFINITE_GRADIENT']}" in refused
    assert facts(shown.lines)["round"] == "no push waits for others"
    table = optctl("workers", job.name).lines
    assert table[-1] == "w0: refused 2 NONFINITE_GRADIENT"


@pytest.mark.slow
def test_what_is_durable(tmp_path: Path, name: str):
    with (
        optd.local(data_dir=tmp_path, durability="log", fsync="commit") as server,
        optd.connect(server.address, job=name, worker="w0", durable=True) as session,
    ):
        optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session).step([np.ones(4, "f4")])
        shown = facts(Optctl(server.address)("explain", name).lines)
        assert shown["durability"] == "log, fsync commit: version 1 survives a power cut, all there is"


@pytest.mark.slow
def test_a_job_that_is_not_there(optctl: Optctl):
    ended = optctl("explain", "nope")
    assert (ended.code, ended.err) == (5, "optctl: no job 'nope' on this server\n")


def test_a_failed_job_with_workers_that_lag_or_are_gone():
    """Times are those of the server; every row is there for a reason."""
    silent = replace(QUIET, name="w1", host="b", pid=7, last_push_unix_ms=NOW - 50_000)
    idle = replace(QUIET, name="w2", joined_unix_ms=NOW - 40_000)
    stale = replace(QUIET, name="w3", recent_staleness=StalenessSummary(9, 11, 12), last_push_unix_ms=NOW)
    gone = replace(QUIET, name="w4", active=False, ended=LEFT, ended_unix_ms=NOW)
    back = replace(QUIET, name="w5", active=False, ended=ROLLED_BACK)
    job = JobSummary("digits", "sgd", Async(), JobVersion(12, 9), 1, 1, 1, 4, 9, 2, 0, 0, failure="it broke")
    job = replace(job, stepped_unix_ms=NOW)
    report = JobReport(job, (), (QUIET, silent, idle, stale, gone, back), NOW)
    old = Rejection(NOW - RECENT_MS - 1, "w0", "STALE_EPOCH", "it was late", 3)
    found = explanation_facts(Explanation(report, {"STALE_EPOCH": 2}, (old,), "snapshot"))
    assert found[1:] == [
        ("failed", "it broke"),
        ("policy", "async: each push makes a step at once, in order of arrival"),
        ("round", "no push waits for others"),
        ("workers", "4 with a lease: w0 (-), w1 (b:7), w2 (-) and w3 (-)"),
        ("left", "w4"),
        ("lost", "w5 (fenced, because the job went back)"),
        ("lags", "w1 last pushed 50 s ago, while others make steps"),
        ("lags", "w2 joined 40 s ago and has not pushed yet, while others make steps"),
        ("lags", "w3 pushes gradients that are old: 9 versions in the median"),
        ("refused", "nothing in the last 10 min; 2 before"),
        ("durability", "snapshot: version 9 survives a power cut, 3 versions behind"),
    ]


@pytest.mark.parametrize("reason", ADVICE)
def test_advice_is_about_reasons_that_exist(reason: str):
    assert reason in {getattr(one, "reason", None) for one in vars(errors).values()}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("STALE_EPOCH", "worker= of its own"),
        ("FRAME_LENGTH", "correct the call"),
        ("UNKNOWN_GROUP", "look for the name"),
        ("SHUTTING_DOWN", "tries again"),
    ],
)
def test_every_kind_of_refusal_has_advice(reason: str, words: str):
    assert words in advice(reason)


def test_a_reason_of_a_newer_server_has_none():
    assert advice("FROM_TOMORROW") == ""


def test_a_round_in_one_line():
    found = RoundInfo(NOW, 7, NOW - 3_000, ("w1", "w2"), ("w3",), (QUIET,), 0, NOW + 12_000, "its time is up")
    first = RoundInfo(NOW, 7, arriving=("w3",), fragment=2)
    assert rounds.short([found, first], seconds_ago=2.0) == [
        "step 7, open for 5 s; in it w1 and w2; on their way w3; waits for w0 (no push yet); at the latest in 10 s",
        "step 7 of fragment 2, no gradient is there yet; on their way w3",
    ]


def test_notes_below_the_table_of_workers():
    declined = replace(QUIET, name="w1", lane="grpc (no memory)")
    refused = replace(QUIET, name="w2", rejections_by_reason={"A": 1, "B": 3})
    lately = replace(QUIET, name="w3", ended=REPLACED, ended_unix_ms=NOW - 5_000)
    long_ago = replace(QUIET, name="w4", ended=REPLACED, ended_unix_ms=NOW - 5_000_000)
    assert notes([QUIET, declined, refused, lately, long_ago], NOW) == [
        "",
        "w1: lane grpc (no memory)",
        "w2: refused 3 B and 1 A",
        "w3: took its name over 5 s ago from a process that still held it",
    ]
    assert notes([QUIET], NOW) == []
