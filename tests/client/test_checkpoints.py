"""Checkpoints of jobs, from a real server and back to another one: exact, strict, and whole or not at all."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import xxhash
from contract.plain import Plain, refusal_of
from faults.processes import wait_for

import optd
from optd.checkpoints.files import CheckpointInfo, read_info, verify
from optd.checkpoints.place import place_of
from optd.local import LocalServer, local
from optd_wire.checkpoint_format import MANIFEST
from optd_wire.errors import (
    CheckpointExists,
    CheckpointMismatch,
    DamagedCheckpoint,
    InvalidRequest,
    JobExists,
    JobInUse,
    NoCheckpoint,
    NothingDurable,
    OtherWorkers,
    VersionNotKept,
    WrongCheckpoint,
)
from optd_wire.v1 import checkpoint_service_pb2 as pb

MAKE = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"lr": 0.1, "amsgrad": True},
    "adafactor": {},
    "rprop": {},
    "asgd": {"t0": 2.0},
    "rmsprop": {"centered": True, "momentum": 0.5},
    "muon": {},
    "lbfgs": {"max_iter": 3},
    "radam": {},
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A second server, which keeps its jobs."""
    folder = tmp_path_factory.mktemp("kept")
    with local("--snapshot-versions", "1", data_dir=folder, durability="log") as running:
        yield running


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"layer": rng.normal(size=(4, 3)).astype(np.float32), "deep": rng.normal(size=(3, 3)).astype(np.float32)}


def gradients(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in weights().items()}


class Trained:
    """A worker that steps."""

    def __init__(self, session: optd.Session, algorithm: str = "adam", **how: Any) -> None:
        self.algorithm, self.weights = algorithm, weights()
        self.session = session
        self.optimizer = optd.Optimizer(algorithm, self.weights, session=session, **MAKE[algorithm], **how)

    def step(self, *numbers: int) -> None:
        for number in numbers:
            if self.algorithm == "lbfgs":
                self.optimizer.step(self.bowl)
            else:
                self.optimizer.step(gradients(number))

    def bowl(self) -> tuple[float, dict[str, np.ndarray]]:
        return float(sum((w**2).sum() for w in self.weights.values())), {k: 2 * w for k, w in self.weights.items()}


def contents(path: Path) -> dict[str, Any]:
    """Checksums of all tensors of a checkpoint, by file."""
    files: dict[str, Any] = json.loads((path / MANIFEST).read_text())["files"]
    return files


@pytest.mark.parametrize("algorithm", MAKE)
def test_a_job_goes_on_elsewhere_to_the_same_bits(
    server: LocalServer, other: LocalServer, name: str, tmp_path: Path, algorithm: str
):
    how: dict[str, Any] = {}
    schedule: dict[str, Any] = {}
    if algorithm != "lbfgs":
        how = {"gradients": optd.Gradients(clip_norm=3.0, accumulate=2), "averages": optd.EMA(decay=0.9)}
        schedule = {"lr_schedule": optd.schedules.Cosine(20)}
    with optd.connect(server.address, job=name, worker="a", **how) as session:
        here = Trained(session, algorithm, **schedule)
        here.step(*range(5))  # of an odd number, one is left to be added up with the next
        saved = session.save(tmp_path / "five")
        restored = optd.restore(tmp_path / "five", job=f"{name}-moved", server=other.address)
        assert saved.version == restored.version.version == session.version
        here.step(*range(5, 9))
        session.save(tmp_path / "here")
        ours = session.info()
        if how:
            here.optimizer.flush()
    with optd.connect(other.address, job=f"{name}-moved", worker="b") as session:
        there = Trained(session, algorithm)
        there.step(*range(5, 9))
        session.save(tmp_path / "there")
        theirs = session.info()
        if how:
            there.optimizer.flush()
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert {"weights-small.safetensors", "state-small.safetensors"} <= contents(tmp_path / "here").keys()
    assert theirs.version.version == ours.version.version
    assert [group.options.options for group in theirs.groups] == [group.options.options for group in ours.groups]
    assert theirs.options.options == ours.options.options and theirs.averages == ours.averages


def test_a_checkpoint_tells_what_is_in_it(server: LocalServer, name: str, tmp_path: Path):
    with optd.connect(server.address, job=name) as session:
        Trained(session).step(1, 2)
        saved = session.save(tmp_path / "two")
    assert saved == read_info(place_of(tmp_path / "two")) == verify(place_of(tmp_path / "two"))
    (group,) = saved.groups
    assert (saved.job, saved.version, saved.algorithm, group.name) == (name, 2, "adam", "group0")
    assert group.options["lr"] == 0.1 and group.options["amsgrad"] is True and group.options["betas"] == (0.9, 0.999)
    assert [(each.name, each.shape, each.dtype, each.steps) for each in group.parameters] == [
        ("layer", (4, 3), "float32", 2),
        ("deep", (3, 3), "float32", 2),
    ]


def test_a_version_on_the_disk_is_saved_too(other: LocalServer, name: str, tmp_path: Path):
    with optd.connect(other.address, job=name) as session:
        worker = Trained(session)
        worker.step(1)
        session.wait_durable()
        wait_for_snapshot(other, name, 1)
        worker.step(2)
        assert session.save(tmp_path / "one", version=1).version == 1
        with pytest.raises(VersionNotKept, match=f"no snapshot of version 7 of job '{name}'; it has those of"):
            session.save(tmp_path / "seven", version=7)
        assert not (tmp_path / "seven").exists()


def wait_for_snapshot(server: LocalServer, job: str, version: int) -> None:
    with Plain(server.address) as plain:
        wait_for(
            lambda: (
                version
                in {
                    each.version for each in plain.checkpoints.ListSnapshots(pb.ListSnapshotsRequest(job=job)).snapshots
                }
            ),
            f"a snapshot of version {version}",
        )


def test_a_server_without_a_disk_has_no_versions(server: LocalServer, name: str, tmp_path: Path):
    with optd.connect(server.address, job=name) as session:
        Trained(session).step(1)
        with pytest.raises(NothingDurable):
            session.save(tmp_path / "one", version=1)


def test_a_job_that_exists_is_left_alone_unless_it_is_to_be_replaced(server: LocalServer, name: str, tmp_path: Path):
    with optd.connect(server.address, job=name) as session:
        worker = Trained(session)
        worker.step(1)
        session.save(tmp_path / "one")
        worker.step(2)
        with pytest.raises(JobExists):
            optd.restore(tmp_path / "one", server=server.address)
        with pytest.raises(JobInUse):
            optd.restore(tmp_path / "one", server=server.address, if_exists="replace")
        assert session.info().version.version == 2
    assert optd.restore(tmp_path / "one", server=server.address, if_exists="replace").version.version == 1


def test_a_checkpoint_is_loaded_into_a_job_by_name(server: LocalServer, name: str, tmp_path: Path):
    with optd.connect(server.address, job=name) as session:
        worker = Trained(session)
        worker.step(1, 2)
        session.save(tmp_path / "two")
        at_two = {key: array.copy() for key, array in worker.weights.items()}
        worker.step(3)
        worker.optimizer.param_groups[0]["lr"] = 0.5
        worker.step(4)
        with pytest.raises(OtherWorkers):
            optd.restore(tmp_path / "two", server=server.address, if_exists="load")
    info = optd.restore(tmp_path / "two", server=server.address, if_exists="load")
    assert (info.version.version, info.groups[0].options.options["lr"]) == (4, 0.5)
    with optd.connect(server.address, job=name) as session:
        again = Trained(session)
        again.optimizer.pull()
        assert all(np.array_equal(at_two[key], again.weights[key]) for key in at_two)
    assert {each.steps for group in read_saved(name, server, tmp_path).groups for each in group.parameters} == {2}


def read_saved(job: str, server: LocalServer, folder: Path) -> CheckpointInfo:
    with optd.connect(server.address, job=job) as session:
        return session.save(folder / "now")


@pytest.fixture
def differing(server: LocalServer, name: str, tmp_path: Path) -> Path:
    """A checkpoint with `layer`, `deep` and `old`; the job has `layer`, a wider `deep`, and `new`."""
    with optd.connect(server.address, job=f"{name}-before") as session:
        own = weights() | {"old": np.ones(2, np.float32)}
        optimizer = optd.Adam(own, lr=0.1, session=session)
        optimizer.step({key: np.ones_like(array) for key, array in own.items()})
        session.save(tmp_path / "before")
    with optd.connect(server.address, job=name) as session:
        own = weights() | {"deep": np.ones((5, 3), np.float32), "new": np.ones(2, np.float32)}
        optimizer = optd.Adam(own, lr=0.1, session=session)
        for _ in range(2):
            optimizer.step({key: np.ones_like(array) for key, array in own.items()})
    return tmp_path / "before"


def test_names_and_shapes_that_differ_are_listed(server: LocalServer, name: str, differing: Path):
    with pytest.raises(CheckpointMismatch) as caught:
        optd.restore(differing, job=name, server=server.address, if_exists="load")
    assert caught.value.values["differences"] == (
        "missing new; additional old; reshaped deep [3, 3] float32, here [5, 3] float32; "
        "partial=True (--partial) loads what fits"
    )


def test_what_fits_is_loaded_if_that_is_asked_for(server: LocalServer, name: str, differing: Path, caplog):
    with caplog.at_level(logging.WARNING, "optd"):
        optd.restore(differing, job=name, server=server.address, if_exists="load", partial=True)
    assert f"job {name}: loaded 1 parameters of {differing}; left out: missing new; additional old" in caplog.text
    with Plain(server.address) as plain:
        found = plain.weights(name)
        assert np.allclose(found["layer"], weights()["layer"] - 0.1, atol=1e-6)
        assert np.allclose(found["new"], 0.8)


def test_arguments_that_make_no_sense_are_refused(server: LocalServer, tmp_path: Path):
    with pytest.raises(InvalidRequest, match="if_exists must be 'fail', 'replace' or 'load', got 'attach'"):
        optd.restore(tmp_path, server=server.address, if_exists="attach")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="partial=True needs if_exists='load'"):
        optd.restore(tmp_path, server=server.address, partial=True)
    with pytest.raises(NoCheckpoint, match="manifest.json is missing"):
        optd.restore(tmp_path, server=server.address)


def test_a_checkpoint_that_exists_is_left_alone(server: LocalServer, name: str, tmp_path: Path):
    with optd.connect(server.address, job=name) as session:
        worker = Trained(session)
        worker.step(1)
        session.save(tmp_path / "best")
        worker.step(2)
        with pytest.raises(CheckpointExists):
            session.save(tmp_path / "best")
        assert read_info(place_of(tmp_path / "best")).version == 1
        assert session.save(tmp_path / "best", overwrite=True).version == 2


@pytest.mark.parametrize("file", ["weights-small.safetensors", "state-small.safetensors", MANIFEST])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_damage_is_found_with_its_file(server: LocalServer, name: str, tmp_path: Path, file: str, how: str):
    with optd.connect(server.address, job=name) as session:
        Trained(session).step(1)
        session.save(tmp_path / "best")
    path = tmp_path / "best" / file
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 4
        path.write_bytes(data if how == "flipped" else data[:-1])
    missing_whole = (file, how) == (MANIFEST, "missing")
    with pytest.raises(NoCheckpoint if missing_whole else DamagedCheckpoint, match=file):
        verify(place_of(tmp_path / "best"))
    with pytest.raises((NoCheckpoint, DamagedCheckpoint, WrongCheckpoint), match=file):
        optd.restore(tmp_path / "best", job=f"{name}-again", server=server.address)
    with Plain(server.address) as plain:
        assert f"{name}-again" not in plain.job_names()


# What a client may send that is no checkpoint


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with the checksum that it should have."""
    body = {key: manifest[key] for key in ("files", "snapshot")}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({"format": 1, **body, "checksum": xxhash.xxh3_128_hexdigest(text)}).encode()


def changed(manifest: dict[str, Any], where: str, value: Any) -> bytes:
    *path, last = where.split("/")
    inner: Any = manifest
    for key in path:
        inner = inner[int(key) if key.isdecimal() else key]
    inner[int(last) if last.isdecimal() else last] = value
    return sealed(manifest)


WRONG = {
    "an option out of range": ("snapshot/groups/0/options/options/lr", {"number": -1.0}),
    "an option that is none": ("snapshot/groups/0/options/options/speed", {"number": 1.0}),
    "an algorithm that is none": ("snapshot/algorithm", "adamant"),
    "a version that overflows": ("snapshot/version", str(2**64 - 1)),
    "history of a group that is none": ("snapshot/history/counts", {"nobody": "3"}),
    "no groups": ("snapshot/groups", []),
    "a step count below 0": ("snapshot/groups/0/steps/0", -1),
    "too few step counts": ("snapshot/groups/0/steps", [1]),
    "a huge shape": ("snapshot/groups/0/parameters/0/shape", [1 << 50]),
    "another shape": ("snapshot/groups/0/parameters/0/shape", [5, 3]),
    "a dtype that is none": ("snapshot/groups/0/parameters/0/dtype", "DTYPE_UNSPECIFIED"),
    "state that no such job has": ("snapshot/groups/0/fields/0/name", "momentum_buffer"),
    "state of a parameter that is none": ("snapshot/groups/0/fields/0/started", [77]),
    "an average that nobody asked for": ("snapshot/averages", [{"name": "ema", "updates": "3"}]),
    "more groups than there are": ("snapshot/created_with", 7),
    "a field that nobody knows": ("snapshot/surprise", 1),
    "a path": ("files", {"../../etc/passwd": {"bytes": 1, "checksum": ""}}),
    "a huge file": ("files/weights-small.safetensors/bytes", 1 << 50),
    "a policy without workers": ("snapshot/policy", {"sync": {"workers": 0}}),
    "rows of a parameter that is none": (
        "snapshot/accumulation",
        {"count": 1, "totals": [{"weights": [0, 0]}], "rows": [{"group": 9, "parameter": 9, "weight": 1}]},
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_34_a_hostile_checkpoint_is_refused(server: LocalServer, name: str, tmp_path: Path, wrong: str):
    with optd.connect(server.address, job=name) as session:
        Trained(session).step(1)
        session.save(tmp_path / "best")
    manifest = json.loads((tmp_path / "best" / MANIFEST).read_text())
    (tmp_path / "best" / MANIFEST).write_bytes(changed(manifest, *WRONG[wrong]))
    with Plain(server.address) as plain:
        before = plain.status().planned_bytes
        code = upload(plain, f"{name}-again", tmp_path / "best")
        assert code in ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION")
        assert plain.status().planned_bytes == before
        assert f"{name}-again" not in plain.job_names()


def upload(plain: Plain, job: str, folder: Path) -> str:
    """Sends all files of a folder as they are; returns the status."""

    def messages() -> Iterator[pb.RestoreJobRequest]:
        yield pb.RestoreJobRequest(job=job)
        for path in sorted(folder.iterdir()):
            yield pb.RestoreJobRequest(file=path.name, data=path.read_bytes())
        yield pb.RestoreJobRequest(last=True)

    with pytest.raises(grpc.RpcError) as caught:
        plain.checkpoints.RestoreJob(messages(), timeout=10)
    return refusal_of(caught.value).code.name


def test_files_that_the_manifest_does_not_name_are_refused(server: LocalServer, name: str, tmp_path: Path):
    with optd.connect(server.address, job=name) as session:
        Trained(session).step(1)
        session.save(tmp_path / "best")
    (tmp_path / "best" / "zzz.safetensors").write_bytes(b"1")
    with Plain(server.address) as plain:
        assert upload(plain, f"{name}-again", tmp_path / "best") == "INVALID_ARGUMENT"
