"""A job goes back to an earlier version: because somebody asked for it, or because a step has failed half-way."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.plain import Plain
from faults.processes import SECONDS, wait_for

import optd
from optd.local import LocalServer, local
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import JobFailed, NothingDurable, VersionNotKept
from optd_wire.v1 import checkpoint_service_pb2 as pb

pytestmark = pytest.mark.slow

SIZE = 50
LOG = ("--durability", "log", "--fsync", "commit")
LEVELS = pytest.mark.parametrize("level", [("--durability", "snapshot"), LOG], ids=["snapshot", "log"])
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


def gradient(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SIZE).astype(np.float32)


class Worker:
    """One that steps, with the weights after each step."""

    def __init__(self, session: optd.Session) -> None:
        self.weights = np.ones(SIZE, np.float32)
        self.optimizer = optd.Adam({"w": self.weights}, lr=0.1, session=session)
        self.seen: dict[int, np.ndarray] = {}

    def step(self, number: int) -> None:
        self.optimizer.step({"w": gradient(number)})
        self.seen[number] = self.weights.copy()


def calls(server: LocalServer) -> ServerCalls:
    return ServerCalls.over_grpc(server.address)


def versions(server: LocalServer, job: str) -> list[int]:
    with Plain(server.address) as plain:
        return [each.version for each in plain.checkpoints.ListSnapshots(pb.ListSnapshotsRequest(job=job)).snapshots]


def roll_back(server: LocalServer, job: str, version: int) -> int:
    transport = calls(server)
    try:
        return transport.roll_back_job(job, version, SECONDS).version
    finally:
        transport.close()


@LANES
@LEVELS
def test_workers_go_on_from_the_version_that_a_job_was_rolled_back_to(tmp_path: Path, name: str, level, lane, caplog):
    """As if what came after it had never been; and after a restart it still has not."""
    flags = (*level, "--snapshot-versions", "1", "--keep-snapshots", "50", "--data-dir", str(tmp_path / "data"))
    with local(*flags) as server, optd.connect(server.address, job=name, worker="w", lane=lane) as session:
        worker = Worker(session)
        for number in range(1, 4):
            worker.step(number)
        wait_for(lambda: 3 in versions(server, name), "a snapshot of version 3")
        at_three = worker.seen[3]
        for number in range(4, 8):
            worker.step(number)
        with caplog.at_level(logging.WARNING, "optd"):
            assert roll_back(server, name, 3) == 3
            worker.optimizer.step({"w": np.full(SIZE, 9, np.float32)})  # of weights that no longer exist
        assert np.array_equal(worker.weights, at_three)
        assert "version 3" in caplog.text and "4 acknowledged pushes of worker w" in caplog.text
        for number in range(4, 6):
            worker.step(number)
        expected = worker.weights.copy()
        assert session.version == 5
    with local(*flags) as server, optd.connect(server.address, job=name, worker="w", lane=lane) as session:
        worker = Worker(session)
        worker.optimizer.pull()
        assert session.version == 5 and np.array_equal(worker.weights, expected)
        worker.step(6)
    with local() as calm, optd.connect(calm.address, job=name) as session:
        undisturbed = Worker(session)
        for number in range(1, 7):
            undisturbed.step(number)
    assert np.array_equal(worker.weights, undisturbed.weights)


def test_nothing_else_moves(tmp_path: Path, name: str):
    with (
        local(*LOG, "--snapshot-versions", "1", "--data-dir", str(tmp_path)) as server,
        optd.connect(server.address, job=f"{name}-other") as other,
        optd.connect(server.address, job=name) as session,
    ):
        neighbour, worker = Worker(other), Worker(session)
        neighbour.step(1)
        worker.step(1)
        wait_for(lambda: 1 in versions(server, name), "a snapshot of version 1")
        worker.step(2)
        roll_back(server, name, 1)
        neighbour.step(2)
        assert other.version == 2 and other.epoch == 1


def test_a_version_that_is_not_kept_is_named_with_those_that_are(tmp_path: Path, name: str):
    with local(*LOG, "--data-dir", str(tmp_path)) as server, optd.connect(server.address, job=name) as session:
        worker = Worker(session)
        worker.step(1)
        with pytest.raises(VersionNotKept, match=f"no snapshot of version 77 of job '{name}'; it has "):
            roll_back(server, name, 77)
        worker.step(2)
        assert session.version == 2


def test_a_server_without_a_disk_cannot_go_back(server: LocalServer, name: str):
    with optd.connect(server.address, job=name) as session:
        Worker(session).step(1)
        with pytest.raises(NothingDurable):
            roll_back(server, name, 0)


# Failed steps

FRAGILE = """
from typing import NamedTuple
import numpy as np
from optd_server.extending import Elementwise, Number, StateField, learning_rate, number

class Coefficients(NamedTuple):
    lr: Number

def coefficients(options, step):
    return Coefficients(number(options, "lr"))

def update(c, block):
    block.state["sum"] += block.gradient
    np.subtract(block.weights, c.lr * block.gradient, out=block.out)
    if block.gradient.max() > 1e6:
        raise ArithmeticError("too steep")

FRAGILE = Elementwise(
    name="fragile", title="Fragile", doc="SGD that gives up on large gradients, half-way.",
    options=(learning_rate(1e-3),), state=(StateField("sum"),), coefficients=coefficients, update=update, scratch=0,
)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with a package whose algorithm raises in the middle of a step, on the path of servers to come."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "fragile.py").write_text(FRAGILE)
    information = folder / "fragile-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[optd.optimizers]\nfragile = fragile:FRAGILE\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [before])])
    yield "fragile"
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def fragile(session: optd.Session, weights: np.ndarray) -> Any:
    return optd.Optimizer("fragile", {"w": weights}, lr=0.5, session=session)


def test_a_job_that_failed_goes_on_from_its_log(tmp_path: Path, name: str, plugin: str):
    with local(*LOG, "--kernels", "numpy", "--data-dir", str(tmp_path)) as server:
        one, two = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
        with (
            optd.connect(server.address, job=name, worker="one") as session,
            optd.connect(server.address, job=name, worker="two") as second,
        ):
            first, other = fragile(session, one), fragile(second, two)
            for _ in range(3):
                first.step({"w": np.ones(SIZE, np.float32)})
            with pytest.raises(JobFailed, match="after version 3.*too steep.*it goes back to what its disk has"):
                first.step({"w": np.full(SIZE, 1e7, np.float32)})
            # Others wait until it is back, and notice nothing; and so does the one whose gradient it was.
            other.step({"w": np.ones(SIZE, np.float32)})
            first.step({"w": np.ones(SIZE, np.float32)})
            assert session.version == 5
            assert one.tolist() == [-2.5] * SIZE
            sums = other.state_dict()["state"][0]["sum"]
            assert sums.tolist() == [5.0] * SIZE
        with Plain(server.address) as plain:
            assert plain.summary(name).failure == ""


def test_a_job_that_failed_goes_back_to_its_last_snapshot_without_a_log(tmp_path: Path, name: str, plugin: str, caplog):
    flags = ("--kernels", "numpy", "--snapshot-seconds", "3600", "--data-dir", str(tmp_path))
    with local(*flags) as server, optd.connect(server.address, job=name, worker="one") as session:
        weights = np.zeros(SIZE, np.float32)
        optimizer = fragile(session, weights)
        optimizer.step({"w": np.ones(SIZE, np.float32)})
        session.wait_durable()
        optimizer.step({"w": np.ones(SIZE, np.float32)})
        with pytest.raises(JobFailed):
            optimizer.step({"w": np.full(SIZE, 1e7, np.float32)})
        with caplog.at_level(logging.WARNING, "optd"):
            optimizer.step({"w": np.ones(SIZE, np.float32)})
        assert "version 1" in caplog.text
        assert weights.tolist() == [-0.5] * SIZE
        optimizer.step({"w": np.ones(SIZE, np.float32)})
        assert session.version == 2 and weights.tolist() == [-1.0] * SIZE


def test_a_job_that_failed_without_a_disk_can_still_be_read(name: str, plugin: str):
    with local("--kernels", "numpy") as server, optd.connect(server.address, job=name, worker="one") as session:
        weights = np.zeros(SIZE, np.float32)
        optimizer = fragile(session, weights)
        optimizer.step({"w": np.ones(SIZE, np.float32)})
        with pytest.raises(JobFailed, match="it can still be read, but takes no more steps"):
            optimizer.step({"w": np.full(SIZE, 1e7, np.float32)})
        with pytest.raises(JobFailed):
            optimizer.step({"w": np.ones(SIZE, np.float32)})
        optimizer.pull()
        assert weights.tolist() == [-0.5] * SIZE
