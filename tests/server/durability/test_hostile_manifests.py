"""Manifests that somebody has made up, with right checksums: refused with their name, without a crash."""

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.server.durability.fixtures.make import HERE

from optd_server.durability.problems import Damage
from optd_server.durability.snapshots.folder import SnapshotFolder, snapshots_in
from optd_wire import checkpoint_format

Manifest = dict[str, Any]


@pytest.fixture
def snapshot(tmp_path) -> SnapshotFolder:
    (source,) = (HERE / "format-1" / "data" / "jobs").glob("*/snapshots")
    copied = shutil.copytree(source, tmp_path / "snapshots")
    return snapshots_in(Path(copied))[-1]


def rewritten(snapshot: SnapshotFolder, change: Callable[[Manifest], object]) -> None:
    path = snapshot.path / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["checksum"] = checkpoint_format._checksum(manifest)
    path.write_text(json.dumps(manifest))


def body(found: Manifest) -> Manifest:
    group: Manifest = found["snapshot"]["groups"][0]
    return group


CHANGES: dict[str, Callable[[Manifest], object]] = {
    "a file outside": lambda m: m["files"].update({"../manifest.json": {"bytes": 1, "checksum": ""}}),
    "an absolute file": lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "checksum": ""}}),
    "the folder above": lambda m: m["files"].update({"..": {"bytes": 1, "checksum": ""}}),
    "a file with a NUL": lambda m: m["files"].update({"a\0b.safetensors": {"bytes": 1, "checksum": ""}}),
    "files are a list": lambda m: m.update(files=[1]),
    "a file is a number": lambda m: m["files"].update({"weights-small.safetensors": 7}),
    "a file without bytes": lambda m: m["files"]["weights-small.safetensors"].pop("bytes"),
    "a file of text bytes": lambda m: m["files"]["weights-small.safetensors"].update(bytes="9"),
    "no weights": lambda m: m["files"].pop("weights-small.safetensors"),
    "snapshot is a list": lambda m: m.update(snapshot=[]),
    "snapshot is empty": lambda m: m.update(snapshot={}),
    "an unknown field": lambda m: m["snapshot"].update(nonsense=1),
    "version is text": lambda m: m["snapshot"].update(version="x"),
    "version is negative": lambda m: m["snapshot"].update(version="-1"),
    "terabytes": lambda m: body(m)["parameters"][0].update(shape=["1099511627776"]),
    "a shape that overflows": lambda m: body(m)["parameters"][0].update(shape=["4611686018427387904"] * 4),
    "another shape of its size": lambda m: body(m)["parameters"][0].update(shape=["3", "2"]),
    "another name": lambda m: body(m)["parameters"][0].update(name="other"),
    "another dtype": lambda m: body(m)["parameters"][0].update(dtype="DTYPE_INT32"),
    "no steps": lambda m: body(m).pop("steps"),
    "a field that Adam has not": lambda m: body(m)["fields"][0].update(name="nonsense"),
    "no totals": lambda m: m["snapshot"]["accumulation"].pop("totals"),
    "rows of no group": lambda m: m["snapshot"]["accumulation"].update(rows=[{"group": 9, "parameter": 9}]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_34_a_hostile_manifest_is_refused(snapshot, what):
    rewritten(snapshot, CHANGES[what])
    tracemalloc.start()
    try:
        with pytest.raises(Damage, match=re.escape(str(snapshot.path))):
            snapshot.load()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_34_a_manifest_that_nests_deeply_is_refused(snapshot):
    (snapshot.path / "manifest.json").write_text('{"files": ' * 100_000)
    with pytest.raises(Damage, match="it is no manifest"):
        snapshot.load()


def test_a_manifest_with_other_spaces_is_the_same(snapshot):
    rewritten(snapshot, lambda manifest: None)
    assert snapshot.load()[0].name == "digits"
