"""Streams of versions and waits for them: many of them, across restarts and rollbacks, and when the server ends."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.plain import Plain, refused
from e2e.programs import running
from faults.durable import Durable
from faults.processes import in_background, wait_for

import optd
from optd.local import LocalServer
from optd.session.session import Session
from optd_wire.v1 import checkpoint_service_pb2, training_service_pb2

pytestmark = pytest.mark.slow

SECONDS = 30.0
COMMIT = ("--durability", "log", "--fsync", "commit")
WATCHERS = 100


class Trainer:
    """Its weights at version n are n."""

    def __init__(self, session: Session, size: int = 4) -> None:
        self.optimizer = optd.SGD({"w": np.zeros(size, "f4")}, lr=1.0, session=session)
        self.gradient = {"w": np.full(size, -1.0, "f4")}

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.step(self.gradient)


@pytest.fixture
def durable(tmp_path: Path):
    with Durable(tmp_path / "data", *COMMIT) as server:
        yield server


def test_versions_and_waits_go_on_after_a_kill(durable: Durable, name: str):
    """A server that is killed and started again: who iterates and who waits need no code for that."""
    with (
        optd.connect(durable.address, job=name, worker="w", timeout=SECONDS) as session,
        optd.connect(durable.address, job=name, timeout=SECONDS) as reading,
    ):
        trainer = Trainer(session)
        versions = reading.versions()
        trainer.steps(2)
        waited = in_background(lambda: reading.wait(5))
        pulled = in_background(lambda: reading.pull(min_version=5))
        found = [next(versions)]
        for _ in range(2):
            durable.restart()
            trainer.steps(1)
            while found[-1] < trainer.optimizer.version:
                found.append(next(versions))
        assert not waited.done()
        trainer.steps(1)
        assert (waited.result(SECONDS), pulled.result(SECONDS).version) == (5, 5)
        assert set(pulled.result()["w"].tolist()) == {5.0}
        assert found == sorted(set(found)), "no version is told twice"
        (worker,) = reading.workers()
        assert worker.name == "w"
        versions.close()


def test_a_rollback_is_told_as_a_lower_version(tmp_path: Path, name: str):
    flags = ("--durability", "log", "--snapshot-versions", "1")
    with (
        Durable(tmp_path / "data", *flags) as server,
        optd.connect(server.address, job=name, worker="w", timeout=SECONDS) as session,
        optd.connect(server.address, job=name, timeout=SECONDS) as reading,
        Plain(server.address) as plain,
    ):
        trainer = Trainer(session)
        trainer.steps(1)
        request = checkpoint_service_pb2.ListSnapshotsRequest(job=name)
        wait_for(lambda: any(s.version for s in plain.checkpoints.ListSnapshots(request).snapshots), "a snapshot")
        kept = max(each.version for each in plain.checkpoints.ListSnapshots(request).snapshots)
        trainer.steps(5)
        versions = reading.versions()
        assert next(versions) == 6
        plain.checkpoints.RollBackJob(checkpoint_service_pb2.RollBackJobRequest(job=name, version=kept))
        assert next(versions) == kept < 6
        assert set(reading.pull()["w"].tolist()) == {float(kept)}
        versions.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_that_stops_ends_streams_and_waits_at_once(tmp_path: Path, name: str, number: signal.Signals):
    """They are told that it shuts down; the server does not wait for them until its grace is over."""
    with running(tmp_path, "--grace-seconds", "60") as program, Plain(program.address) as plain:
        session = optd.connect(program.address, job=name, worker="w", timeout=0.1)
        Trainer(session)
        stream = plain.training.WatchVersions(training_service_pb2.WatchVersionsRequest(job=name))
        request = training_service_pb2.PullRequest(job=name, min_version=9, wait_ms=60_000)
        waiting = plain.training.Pull(request)
        assert next(stream).version.version == 0
        session.close()
        wait_for(lambda: plain.status().requests == 3, "both calls, beside the one that asks")
        program.process.send_signal(number)
        for each in (stream, waiting):
            with refused("SHUTTING_DOWN", "shutting down"):
                next(each)
        assert program.process.wait(SECONDS) == 0


def test_many_watchers_do_not_slow_steps_down(server: LocalServer, plain: Plain, name: str):
    """However fast the steps are, all watchers together are sent about 1000 messages a second, and get the last one."""
    with optd.connect(server.address, job=name, worker="w", timeout=SECONDS) as session:
        trainer = Trainer(session)
        trainer.steps(1)
        request = training_service_pb2.WatchVersionsRequest(job=name)
        streams = [plain.training.WatchVersions(request, timeout=4 * SECONDS) for _ in range(WATCHERS)]
        for stream in streams:
            next(stream)
        began = time.perf_counter()
        trainer.steps(300)
        last, seconds, messages = trainer.optimizer.version, time.perf_counter() - began, 0
        for stream in streams:
            found = [answer.version.version for answer in until(stream, last)]
            assert found == sorted(set(found))
            messages += len(found)
            stream.cancel()
        assert messages <= 1000 * seconds + 2 * WATCHERS, f"{messages} messages in {seconds:.2f} s"


def until(stream: Iterator[Any], version: int) -> Iterator[Any]:
    """What comes up to a version."""
    for answer in stream:
        yield answer
        if answer.version.version == version:
            return
