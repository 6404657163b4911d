"""Snapshots, rollbacks, deletions, creations and restores at the same time: the server goes on, and so do the jobs."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.plain import Plain
from faults.durable import Durable
from faults.processes import SECONDS, in_background, wait_for

import optd
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import DeadlineExceeded, OptdError, UnknownJob
from optd_wire.v1 import checkpoint_service_pb2 as pb

pytestmark = pytest.mark.slow

SIZE = 100
LOG = ("--durability", "log", "--snapshot-seconds", "0.2", "--keep-snapshots", "50")
ONES = np.ones(SIZE, np.float32)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Durable]:
    with Durable(tmp_path / "data", *LOG) as running:
        yield running
        assert running.server.process.poll() is None, running.log()


def worker(server: Durable, job: str, size: int = SIZE, **how: Any) -> tuple[optd.Session, Any, np.ndarray]:
    session = optd.connect(server.address, job=job, worker="w", timeout=SECONDS, **how)
    weights = np.zeros(size, np.float32)
    return session, optd.SGD({"w": weights}, lr=1.0, session=session), weights


def calls(server: Durable) -> ServerCalls:
    return ServerCalls.over_grpc(server.address)


def versions(server: Durable, job: str) -> list[int]:
    with Plain(server.address) as plain:
        return [each.version for each in plain.checkpoints.ListSnapshots(pb.ListSnapshotsRequest(job=job)).snapshots]


@pytest.mark.parametrize("workers", [1, 2], ids=["async", "sync"])
def test_rollbacks_under_steps_and_snapshots(server: Durable, name: str, workers: int):
    """Steps that were lost were lost with a rollback, and the weights are what the rest of them make."""
    policy = optd.Sync(workers=workers) if workers > 1 else optd.Async()
    agreed: dict[int, bool] = {}
    stop = threading.Event()

    def steps(own: str) -> tuple[list[float], int]:
        weights = np.zeros(SIZE, np.float32)
        with optd.connect(server.address, job=name, worker=own, timeout=SECONDS, policy=policy) as session:
            optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
            while not agreed.setdefault(session.version, stop.is_set()):
                optimizer.step({"w": ONES})
            return weights.tolist(), session.version

    running = [in_background(lambda own=f"w{number}": steps(own)) for number in range(workers)]
    transport = calls(server)
    wait_for(lambda: name in {job.name for job in optd.jobs(server=server.address)}, "the job")
    for _ in range(6):
        before = len(versions(server, name))
        wait_for(
            lambda before=before: any(each.done() for each in running) or len(versions(server, name)) > before,
            "another snapshot",
        )
        ended = [each.exception() for each in running if each.done()]
        assert not ended, (ended, server.log()[-4000:])
        transport.roll_back_job(name, versions(server, name)[-1], SECONDS)
    transport.close()
    agreed.clear()
    stop.set()
    for each in running:
        weights, version = each.result(SECONDS)
        assert weights == [-float(version)] * SIZE


def test_a_rollback_whose_caller_goes_away_is_done_nevertheless(server: Durable, name: str):
    session, optimizer, weights = worker(server, name, 1 << 20)
    ones = np.ones(1 << 20, np.float32)
    with session:
        optimizer.step({"w": ones})
        wait_for(lambda: 1 in versions(server, name), "a snapshot of version 1")
        optimizer.step({"w": ones})
        transport = calls(server)
        with pytest.raises(DeadlineExceeded):
            transport.roll_back_job(name, 1, 0.001)
        transport.close()
        wait_for(lambda: transport_version(server, name) == 1, "the rollback")
        optimizer.step({"w": ones})
        optimizer.step({"w": ones})
        assert session.version == 2 and weights[0] == -2


def transport_version(server: Durable, job: str) -> int:
    with Plain(server.address) as plain:
        return int(plain.summary(job).version.version)


def test_a_job_is_deleted_while_its_snapshot_is_written(server: Durable, name: str):
    size = 6_000_000

    def steps(job: str) -> None:
        session, optimizer, _ = worker(server, job, size)
        with session, suppress(UnknownJob):
            while True:
                optimizer.step({"w": np.ones(size, np.float32)})

    for number in range(3):
        job = f"{name}-{number}"
        running = in_background(lambda job=job: steps(job))
        beginning = f"*-{job}/snapshots/.new-*"
        wait_for(lambda new=beginning: list((server.folder / "jobs").glob(new)), "a snapshot that begins")
        optd.delete_job(job, server=server.address)
        running.result(SECONDS)
        assert not list((server.folder / "jobs").glob(f"*-{job}"))
    assert optd.jobs(server=server.address) == ()


def test_many_jobs_come_and_go_at_once(server: Durable, name: str):
    """Their names differ only in what is no part of a folder's name."""
    names = [f"{name}{a}1{b}2{c}x" for a in "./" for b in "./" for c in "./"]

    def act(job: str) -> None:
        for _ in range(4):
            session, optimizer, weights = worker(server, job)
            with session:
                optimizer.step({"w": ONES})
                assert weights[0] == -1
            optd.delete_job(job, server=server.address)

    for future in [in_background(lambda job=job: act(job)) for job in names]:
        future.result(2 * SECONDS)
    server.restart()
    assert optd.jobs(server=server.address) == ()
    session, _, _ = worker(server, names[0])
    with session:
        assert session.epoch > 4, "epochs of deleted jobs are not given again"


def test_a_restore_whose_client_dies_leaves_a_whole_job_or_none(server: Durable, name: str, tmp_path: Path):
    session, optimizer, _ = worker(server, name, 3_000_000)
    with session:
        optimizer.step({"w": np.ones(3_000_000, np.float32)})
        session.save(tmp_path / "one")
    optd.delete_job(name, server=server.address)
    for seconds in (0.02, 0.05, 0.1, 0.2, 0.4):
        with suppress(OptdError):  # it may or may not come to its end in this time
            optd.restore(tmp_path / "one", server=server.address, timeout=seconds)
        wait_for(lambda: Plain(server.address).status().requests == 1, "the end of the call")
        jobs = [job.name for job in optd.jobs(server=server.address)]
        folders = list((server.folder / "jobs").glob("0*"))
        assert len(folders) == len(jobs) <= 1
        if jobs:
            optd.delete_job(name, server=server.address)
    server.restart()
    assert optd.jobs(server=server.address) == ()
    assert not any((server.folder / "incoming").glob("*"))


def test_a_job_that_lost_its_name_is_never_removed(tmp_path: Path, name: str):
    with Durable(tmp_path / "data", *LOG) as server:
        session, optimizer, _ = worker(server, name)
        with session:
            optimizer.step({"w": ONES})
        healthy, other, _ = worker(server, f"{name}-healthy")
        with healthy:
            other.step({"w": ONES})
        server.stop()
        (folder,) = (tmp_path / "data" / "jobs").glob(f"*-{name}")
        content = (folder / "job.json").read_text()
        (folder / "job.json").unlink()
        with pytest.raises(OptdError, match="job.json is damaged"):
            server.start()
        assert folder.is_dir()
        server.start("--recover", "skip")
        assert [job.name for job in optd.jobs(server=server.address)] == [f"{name}-healthy"]
        assert "a job whose name cannot be read" in server.log()
        server.stop()
        (folder / "job.json").write_text(content)
        server.start()
        assert {job.name for job in optd.jobs(server=server.address)} == {name, f"{name}-healthy"}


def test_of_two_folders_of_one_name_the_later_one_counts(tmp_path: Path, name: str):
    """As a server leaves them that is killed while a job takes the place of another one."""
    with Durable(tmp_path / "data", *LOG) as server:
        for steps in (1, 2):
            session, optimizer, _ = worker(server, f"{name}-{steps}")
            with session:
                for _ in range(steps):
                    optimizer.step({"w": ONES})
        server.stop()
        first, second = sorted((tmp_path / "data" / "jobs").iterdir())
        # The later one takes the name of the earlier one.
        told = json.loads((first / "job.json").read_text())
        (second / "job.json").write_text(json.dumps(told))
        for manifest in second.glob("snapshots/*"):
            for file in manifest.iterdir():
                file.unlink()
            manifest.rmdir()
        server.start()
        assert [job.version.version for job in optd.jobs(server=server.address)] == [2]
        assert not first.exists() and "there is a later one of its name" in server.log()


def test_a_job_that_was_deleted_stays_so(server: Durable, name: str):
    session, optimizer, _ = worker(server, name)
    with session:
        optimizer.step({"w": ONES})
    optd.delete_job(name, server=server.address)
    server.restart()
    with pytest.raises(UnknownJob):
        optd.delete_job(name, server=server.address)
