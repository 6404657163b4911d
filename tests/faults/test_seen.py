"""What people see of workers that come, wait, leave and die: in the log, over RPC, and from a worker that waits."""

import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.plain import Plain
from e2e.programs import Program, running
from faults.durable import Durable
from faults.processes import in_background, wait_for, worker

import optd
from optd.session import round_watch
from optd.transport.server_calls import ServerCalls
from optd_wire.v1 import inspection_service_pb2, worker_service_pb2
from optd_wire.v1.worker_service_pb2 import LeaseEnd
from optd_wire.values import LEFT, ROLLED_BACK, WorkerInfo

pytestmark = pytest.mark.slow

LEASE = "1.5"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server with short leases, whose log is JSON."""
    folder: Path = tmp_path_factory.mktemp("server")
    with running(folder, "--lease-seconds", LEASE, "--log-format", "json") as started:
        yield started


@pytest.fixture
def stubs(program: Program) -> Iterator[Plain]:
    with Plain(program.address) as made:
        yield made


def logged(program: Program, job: str) -> list[dict[str, Any]]:
    """The lines of the log about a job and its workers, without the time."""
    found = [json.loads(line) for line in program.log.splitlines() if line.startswith("{")]
    kept = ("event", "worker", "epoch", "host", "pid", "reason", "version")
    return [
        {key: line[key] for key in kept if key in line}
        for line in found
        if line.get("job") == job and line["logger"] == "optd.jobs"
    ]


def open_round(plain: Plain, job: str) -> inspection_service_pb2.RoundInfo:
    """The only open round; an empty one if there is none."""
    rounds = plain.inspection.ListRounds(inspection_service_pb2.ListRoundsRequest(job=job), timeout=10).rounds
    assert len(rounds) <= 1
    return rounds[0] if rounds else inspection_service_pb2.RoundInfo()


def test_the_log_has_a_line_for_each_job_join_leave_and_expiry(program: Program, stubs: Plain, name: str):
    me = {"host": socket.gethostname(), "pid": os.getpid()}
    with optd.connect(program.address, job=name, worker="w0") as session:
        optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session).step([np.ones(4, "f4")])
        with worker(program.address, name, "w1") as other:
            theirs = {"host": me["host"], "pid": other.process.pid}
            other.ask("step", gradient=1)
            other.signal(signal.SIGKILL)
            wait_for(lambda: not stubs.list_workers(name)["w1"].active, "its lease runs out")
        with worker(program.address, name, "w1") as another:
            anew = {"host": me["host"], "pid": another.process.pid}
            with worker(program.address, name, "w1") as successor:
                last = {"host": me["host"], "pid": successor.process.pid}
                found = stubs.list_workers(name)["w1"]
                assert (found.pid, found.ended, found.active) == (last["pid"], LeaseEnd.LEASE_END_REPLACED, True)
    assert stubs.list_workers(name)["w0"].ended == LeaseEnd.LEASE_END_LEFT
    optd.delete_job(name, server=program.address)
    lines = logged(program, name)
    assert lines[:8] == [
        {"event": "job created"},
        {"event": "worker joined", "worker": "w0", "epoch": 1, **me},
        {"event": "worker joined", "worker": "w1", "epoch": 1, **theirs},
        {"event": "worker expired", "worker": "w1", "epoch": 1, **theirs, "reason": f"its lease of {LEASE} s ran out"},
        {"event": "worker joined", "worker": "w1", "epoch": 2, **anew},
        {
            "event": "worker joined",
            "worker": "w1",
            "epoch": 3,
            **last,
            "reason": f"it replaces host {anew['host']} pid {anew['pid']}",
        },
        {"event": "worker left", "worker": "w0", "epoch": 1, **me},
        {"event": "job deleted", "version": 2, "reason": "asked to"},
    ]


def test_21_a_worker_that_waits_for_a_dead_one_names_it_and_so_does_its_deadline(
    program: Program, stubs: Plain, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(round_watch, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(round_watch, "FIRST_INTERVAL_SECONDS", 0.3)
    caplog.set_level(logging.INFO, logger="optd")
    policy = optd.Sync(workers=2)
    with optd.connect(program.address, job=name, worker="w0", policy=policy, timeout=12) as session:
        optimizer = optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session)
        with worker(program.address, name, "w1", 2) as other:
            at = f"w1 (host {socket.gethostname()}, pid {other.process.pid}, "
            waits = in_background(lambda: optimizer.step([np.ones(4, "f4")]))
            wait_for(lambda: list(open_round(stubs, name).arrived) == ["w0"], "its push waits")
            wait_for(lambda: f"job {name}: step 1 waits for {at}no push yet); " in caplog.text, "it names who is there")
            found = open_round(stubs, name)
            assert (found.release, found.missing[0].active, found.places) == ("pushes of w1", True, 0)
            assert 0 < found.opened_unix_ms <= found.unix_ms
            other.signal(signal.SIGKILL)
            wait_for(lambda: f"step 1 waits for {at}lease lost " in caplog.text, "it names who is lost")
        found = open_round(stubs, name)
        assert (found.release.endswith("; w1 was lost"), found.places) == (True, 1)
        assert [(each.name, each.ended) for each in found.missing] == [("w1", LeaseEnd.LEASE_END_EXPIRED)]
        with pytest.raises(optd.errors.DeadlineExceeded) as late:
            waits.result(30)
        assert f"; its round waited for {at}lease lost " in str(late.value)


def test_a_bounded_worker_that_is_ahead_names_the_slow_one(
    program: Program, stubs: Plain, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(round_watch, "PATIENCE_SECONDS", 0.2)
    caplog.set_level(logging.INFO, logger="optd")
    gradient = [np.ones(4, "f4")]
    with (
        optd.connect(program.address, job=name, worker="fast", policy=optd.Bounded(1), timeout=30) as ahead,
        optd.connect(program.address, job=name, worker="slow") as behind,
    ):
        fast, slow = (optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session) for session in (ahead, behind))
        fast.step(gradient)
        fast.step(gradient)
        waits = in_background(lambda: fast.step(gradient))
        wait_for(lambda: f"job {name}: step 3 waits for slow (host " in caplog.text, "it names the slow one")
        assert [*open_round(stubs, name).arrived] == ["fast"]
        slow.step(gradient)
        assert waits.result(30).version.version == 4


def test_a_server_that_was_restarted_or_went_back_tells_what_it_can(tmp_path: Path, name: str):
    flags = ("--durability", "log", "--fsync", "commit", "--snapshot-versions", "1", "--lease-seconds", LEASE)
    with (
        Durable(tmp_path, *flags) as durable,
        optd.connect(durable.address, job=name, worker="w0", timeout=20) as session,
        optd.connect(durable.address, job=name, worker="w1") as other,
        closing(ServerCalls.over_grpc(durable.address)) as transport,
    ):

        def seen(worker: str) -> WorkerInfo:
            return next(one for one in transport.list_workers(name, 10) if one.name == worker)

        optimizer = optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session)
        optd.SGD([np.zeros(4, "f4")], lr=1.0, session=other)
        optimizer.step([np.ones(4, "f4")])
        wait_for(lambda: transport.list_snapshots(name, 10), "there is a snapshot to go back to")
        other.close()
        durable.restart()
        optimizer.step([np.ones(4, "f4")])
        wait_for(lambda: seen("w0").pid == os.getpid(), "it learns the process again")
        assert (seen("w0").active, seen("w0").host, seen("w0").ended) == (True, socket.gethostname(), "")
        # How it ended is kept on disk; when, is not.
        assert (seen("w1").active, seen("w1").ended, seen("w1").ended_unix_ms) == (False, LEFT, 0)
        transport.roll_back_job(name, transport.list_snapshots(name, 10)[0].version, 10)
        assert (seen("w0").active, seen("w0").ended) == (False, ROLLED_BACK)


def test_a_host_that_would_spoil_the_log_is_refused(stubs: Plain, name: str, program: Program):
    with optd.connect(program.address, job=name, worker="w0") as session:
        optd.SGD({"w": np.zeros(3)}, lr=0.1, session=session)
        for host in ("x" * 256, "a\nb", "a\x1b[31m"):
            with pytest.raises(Exception, match="host must have at most 255 printable characters"):
                stubs.workers.Join(worker_service_pb2.JoinRequest(job=name, worker="w1", host=host), timeout=10)
    assert not [line for line in logged(program, name) if line.get("worker") == "w1"]
