"""Faults of the disk and of the server's end, each over a real server. The numbers are those of the fault table."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.faults.durable import Durable
from tests.faults.processes import in_background, wait_for

import optd
from optd_server.durability.data_dir import DataDir, JobFolder
from optd_server.durability.log.scan import segment_paths
from optd_server.durability.snapshots.folder import snapshots_in
from optd_wire.errors import DiskFull, InvalidRequest, JobDamaged, OptdError

COMMIT = ("--durability", "log", "--fsync", "commit")
SIZE = 1000
SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: the file system forgets what is not on its device, as when the power fails."""
NOLOGFLUSH = 2


def train(server: Durable, steps: int, job: str = "j", worker: str = "w", timeout: float = 30) -> np.ndarray:
    weights = np.zeros(SIZE, np.float32)
    with optd.connect(server.address, job=job, worker=worker, timeout=timeout) as session:
        optimizer = optd.Adam({"w": weights}, lr=0.1, session=session)
        for number in range(steps):
            optimizer.step({"w": np.full(SIZE, 1 + number % 7, np.float32)})
    return weights


def weights_of(server: Durable, job: str = "j") -> np.ndarray:
    weights = np.zeros(SIZE, np.float32)
    with optd.connect(server.address, job=job, worker="reader", timeout=30) as session:
        optd.Adam({"w": weights}, lr=0.1, session=session)
    return weights


def version_of(server: Durable, job: str = "j") -> int:
    found = {each.name: each for each in optd.jobs(server=server.address)}
    version: int = found[job].version.version
    return version


def folder_of(data: Path, job: str = "j") -> JobFolder:
    opened = DataDir.open(data)
    try:
        return next(folder for folder in opened.jobs() if folder.name == job)
    finally:
        opened.close()


def flip(path: Path, position: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[position] ^= 4
    path.write_bytes(whole)


def failure(server: Durable, *flags: str) -> str:
    """Why a server does not start."""
    with pytest.raises(InvalidRequest) as refused:
        server.start(*flags)
    return str(refused.value)


# Levels


@pytest.mark.slow
@pytest.mark.parametrize("flags", [COMMIT, ("--durability", "log", "--fsync-interval-ms", "20"), ()], ids=" ".join)
def test_a_server_that_ends_in_order_loses_nothing(tmp_path, flags):
    with Durable(tmp_path, *flags) as server:
        weights = train(server, 10)
        assert server.stop() == 0
        server.start()
        assert version_of(server) == 10
        assert np.array_equal(weights_of(server), weights)


def test_a_log_that_is_synced_at_intervals_loses_nothing_when_the_server_is_killed(tmp_path):
    with Durable(tmp_path, "--durability", "log", "--fsync-interval-ms", "60000") as server:
        weights = train(server, 10)
        server.restart()
        assert np.array_equal(weights_of(server), weights)


@pytest.mark.slow
def test_without_a_log_a_killed_server_goes_back_to_its_last_snapshot(tmp_path):
    with Durable(tmp_path, "--snapshot-seconds", "3600", "--snapshot-versions", "10") as server:
        train(server, 10)
        wait_for(lambda: optd.jobs(server=server.address)[0].version.durable_version == 10, "a snapshot")
        train(server, 4, worker="other")
        server.restart()
        assert version_of(server) == 10
        assert "back at version 10" in server.log()
        with optd.connect(server.address, job="j", worker="w") as session:
            optd.Adam({"w": np.zeros(SIZE, np.float32)}, lr=0.1, session=session)
            assert session.epoch > 1 << 20, "no epoch is given twice"


@pytest.mark.slow
def test_a_server_without_a_data_directory_says_first_that_nothing_is_kept():
    with optd.local() as server:
        assert "nothing is kept" in server._log.read_text().splitlines()[0]


@pytest.mark.slow
def test_a_deleted_job_stays_deleted_and_its_epochs_are_not_used_again(tmp_path):
    with Durable(tmp_path, *COMMIT) as server:
        for _ in range(3):
            train(server, 2)
        optd.delete_job("j", server=server.address)
        server.restart()
        assert optd.jobs(server=server.address) == ()
        with optd.connect(server.address, job="j", worker="w", timeout=30) as session:
            optd.Adam({"w": np.zeros(SIZE, np.float32)}, session=session)
            assert session.epoch == 4


# Damage


def damaged(tmp_path: Path, kind: str) -> tuple[Durable, Path]:
    server = Durable(tmp_path, *COMMIT)
    with server:
        train(server, 5)
        train(server, 5, job="sound")
        if kind == "snapshot":
            server.stop()
        else:
            server.kill()
    folder = folder_of(tmp_path)
    if kind == "snapshot":
        for path in segment_paths(folder.log):
            path.unlink()
        path = next(snapshots_in(folder.snapshots)[-1].path.glob("weights-*"))
        flip(path, path.stat().st_size - 10)
    else:
        path = segment_paths(folder.log)[0]
        flip(path, 600)
    return server, path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["log", "snapshot"])
def test_6_a_flipped_bit_is_refused_with_its_file(tmp_path, kind):
    server, path = damaged(tmp_path, kind)
    why = failure(server)
    assert f"{path} is damaged at byte" in why and "--recover skip" in why
    server.start("--recover", "skip")
    try:
        assert version_of(server, "sound") == 5
        for name in ("w", "another"):
            with pytest.raises(JobDamaged, match="is damaged at byte"):
                train(server, 1, worker=name)
        told = {job.name: job.failure for job in optd.jobs(server=server.address)}
        assert "is damaged at byte" in told["j"] and not told["sound"]
        optd.delete_job("j", server=server.address)
        train(server, 2)
        assert version_of(server) == 2
    finally:
        server.stop()


@pytest.mark.slow
def test_6_a_damaged_snapshot_costs_nothing_while_the_log_has_everything(tmp_path):
    with Durable(tmp_path, *COMMIT) as server:
        weights = train(server, 5)
        server.stop()
        path = next(snapshots_in(folder_of(tmp_path).snapshots)[-1].path.glob("weights-*"))
        flip(path, path.stat().st_size - 10)
        server.start()
        assert "nothing is lost" in server.log()
        assert np.array_equal(weights_of(server), weights)


@pytest.mark.slow
def test_10_a_snapshot_under_load_is_of_one_version(tmp_path):
    """Each step takes 1 from every element of a small and of a large group, so a version says what all of them are."""
    size = 1 << 19
    weights = {"small": np.zeros(5, np.float32), "large": np.zeros(size, np.float32)}
    ones = {name: np.ones_like(array) for name, array in weights.items()}
    groups = [{"params": {name: array}} for name, array in weights.items()]
    flags = ("--snapshot-versions", "1", "--keep-snapshots", "1000")
    with Durable(tmp_path, *flags) as server:
        with optd.connect(server.address, job="j", worker="w", timeout=30) as session:
            optimizer = optd.SGD(groups, lr=1.0, momentum=0.5, session=session)
            for _ in range(150):
                optimizer.step(ones)
        server.kill()
    found = snapshots_in(folder_of(tmp_path).snapshots)
    assert len(found) > 5, "snapshots were written while steps went on"
    for snapshot in found:
        state, _ = snapshot.load()
        momentum, expected = np.float32(0), np.float32(0)
        for _ in range(snapshot.version):
            momentum = np.float32(0.5) * momentum + np.float32(1)
            expected = expected - momentum
        assert state.version == snapshot.version
        for array in state.weights.buffers.all_slabs():
            assert np.all(array == expected), snapshot
        for _, _, _, segment in state.groups.slabs():
            assert all(np.all(array == momentum) for array in segment.state.values()), snapshot
            assert set(segment.steps) == {snapshot.version}


@pytest.mark.slow
def test_11_a_second_server_is_refused_the_directory(tmp_path):
    with Durable(tmp_path) as server:
        train(server, 1)
        assert f"is in use by another server (process {server.server.process.pid}" in failure(Durable(tmp_path))


@pytest.mark.slow
def test_19_a_stopped_server_keeps_its_directory(tmp_path):
    with Durable(tmp_path, *COMMIT) as server:
        train(server, 3)
        server.server.process.send_signal(signal.SIGSTOP)
        try:
            assert "in use by another server" in failure(Durable(tmp_path))
        finally:
            server.server.process.send_signal(signal.SIGCONT)
        assert version_of(server) == 3


@pytest.mark.slow
@pytest.mark.parametrize("file", ["optd.json", "manifest.json"])
def test_12_a_newer_format_is_refused_with_both_versions(tmp_path, file):
    with Durable(tmp_path) as server:
        train(server, 1)
        server.stop()
    path = max(tmp_path.rglob(file))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7}))
    assert f"{path} has format 7, and this version of optd reads formats up to 1" in failure(server)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a/b", "/etc/passwd", "-", ".hidden", "a" * 200, "x/./y"])
def test_33_no_name_of_a_job_leaves_the_directory(tmp_path, name):
    data = tmp_path / "data"
    with Durable(data) as server:
        train(server, 1, job=name)
        server.stop()
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        assert folder_of(data, name).path.parent == data / "jobs"
        server.start()
        assert version_of(server, name) == 1


# The disk


@contextmanager
def mounted(point: Path, *arguments: str) -> Iterator[Path]:
    point.mkdir()
    made = subprocess.run(["mount", *arguments, str(point)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.mark.slow
def test_8_a_full_disk_refuses_pushes_and_goes_on_when_there_is_room(tmp_path):
    with (
        mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk,
        Durable(disk / "data", *COMMIT) as server,
        optd.connect(server.address, job="j", worker="w", timeout=30) as session,
    ):
        weights = np.zeros(SIZE, np.float32)
        optimizer = optd.Adam({"w": weights}, lr=0.1, session=session)
        gradient = {"w": np.ones(SIZE, np.float32)}
        (disk / "filler").write_bytes(b"")
        steps = 0
        with pytest.raises(DiskFull, match="nothing has changed"):
            while steps < 10_000:
                optimizer.step(gradient)
                steps += 1
                if steps == 5:
                    with pytest.raises(OSError, match="space"):
                        (disk / "filler").write_bytes(b"x" * (2 << 20))
        assert 5 <= steps < 10_000
        before = weights.copy()
        optimizer.pull()
        assert np.array_equal(weights, before)
        (disk / "filler").unlink()
        optimizer.step(gradient)
        assert version_of(server) == steps + 1
        server.kill()
        server.server.stop()
        server.start()
        assert version_of(server) == steps + 1


@pytest.mark.slow
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_7_an_error_of_a_sync_ends_the_server_before_anything_is_acknowledged(tmp_path, error):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    with Durable(tmp_path, *COMMIT) as server:
        train(server, 3)
        pid = server.server.process.pid
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", f"inject=fdatasync:error={error}", "-o", "/dev/null", "-p", str(pid)],
            stderr=subprocess.PIPE,
        )
        try:
            wait_for(lambda: tracer.poll() is not None or _is_traced(pid), "the tracer")
            if tracer.poll() is not None:
                pytest.skip("a process cannot be traced here")
            with pytest.raises(OptdError):
                train(server, 1, worker="w3", timeout=2)
            assert server.wait() == 74
        finally:
            tracer.kill()
            tracer.wait()
            assert tracer.stderr is not None
            tracer.stderr.close()
        assert "the disk has failed" in server.log()
        server.server.stop()
        server.start()
        assert version_of(server) == 3


def _is_traced(pid: int) -> bool:
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all("TracerPid:\t0" not in (task / "status").read_text() for task in tasks)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [COMMIT, ("--snapshot-versions", "5")], ids=["log", "snapshot"])
def test_3_and_4_a_power_cut_costs_what_the_level_says(tmp_path, flags):
    """On a file system of its own, which forgets at once what is not on its device."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk, Durable(disk / "data", *flags) as server:
        weights = train(server, 20)
        durable = optd.jobs(server=server.address)[0].version.durable_version
        descriptor = os.open(disk, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NOLOGFLUSH.to_bytes(4, "little"))
        finally:
            os.close(descriptor)
        server.kill()
        server.server.stop()
        subprocess.run(["umount", "-l", str(disk)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
        server.start()
        assert version_of(server) >= durable
        if flags == COMMIT:
            assert durable == version_of(server) == 20
            assert np.array_equal(weights_of(server), weights)
        server.stop()


# The end


@pytest.mark.slow
def test_42_a_server_that_is_asked_to_end_under_load_writes_all_it_has(tmp_path):
    stop = threading.Event()
    with Durable(tmp_path, "--snapshot-seconds", "3600", "--grace-seconds", "2") as server:

        def work() -> int:
            steps = 0
            with optd.connect(server.address, job="j", worker="w", timeout=1) as session:
                optimizer = optd.Adam({"w": np.zeros(SIZE, np.float32)}, lr=0.1, session=session)
                try:
                    while not stop.is_set():
                        optimizer.step({"w": np.ones(SIZE, np.float32)})
                        steps += 1
                except OptdError:
                    return steps
            return steps

        working = in_background(work)
        wait_for(lambda: any(job.version.version > 20 for job in optd.jobs(server=server.address)), "some steps")
        assert server.stop() == 0
        stop.set()
        steps = working.result(30)
        server.start()
        assert version_of(server) in (steps, steps + 1)  # the last answer may not have arrived
        assert "back at version" not in server.log()
