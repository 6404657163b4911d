"""Directories that earlier servers have written: every later one must read them. `fixtures/make.py` made them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.durability.fixtures.make import HERE, adam, contents, recovered

import optd
from optd_server.durability import data_dir
from optd_server.durability.log import framing
from optd_server.durability.snapshots import folder as snapshots
from optd_server.durability.snapshots.folder import snapshots_in

FORMATS = sorted(HERE.glob("format-*"))


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def fixture(request, tmp_path) -> tuple[Path, dict[str, Any]]:
    folder = Path(shutil.copytree(request.param / "data", tmp_path / "data"))
    return folder, json.loads((request.param / "expected.json").read_text())


def test_12_there_is_a_directory_of_each_format():
    newest = max(data_dir.FORMAT, framing.FORMAT, snapshots.FORMAT)
    assert [path.name for path in FORMATS] == [f"format-{number}" for number in range(1, newest + 1)]


@pytest.mark.parametrize("source", ["the newest snapshot", "an older one and the log", "the log"])
def test_12_a_directory_of_an_earlier_format_is_read(fixture, source):
    folder, expected = fixture
    (job,) = (folder / "jobs").iterdir()
    known = snapshots_in(job / "snapshots")
    for each in {"the newest snapshot": [], "an older one and the log": known[1:], "the log": known}[source]:
        shutil.rmtree(each.path)
    found = recovered(folder)
    assert (found.events == 0) == (source == "the newest snapshot")
    same(contents(found), expected)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whether a state has all that was written. Other processors compute other last bits."""
    for path, leaf in expected.items():
        mine = found[path]
        if isinstance(leaf, dict):
            assert (mine["dtype"], mine["shape"]) == (leaf["dtype"], leaf["shape"]), path
            np.testing.assert_allclose(mine["values"], leaf["values"], rtol=1e-6, err_msg=path)
        elif mine != leaf:
            assert float(mine) == pytest.approx(float(leaf), rel=1e-6), path


@pytest.mark.slow
def test_12_a_server_goes_on_with_a_directory_of_an_earlier_format(fixture):
    folder, expected = fixture
    with optd.local(data_dir=folder, durability="log") as server:
        with optd.connect(server.address, job="digits", worker="w0") as session:
            optimizer = adam(session)
            assert session.epoch == int(expected["members.by_name.w0.epoch"]) + 1
            assert session.version == int(expected["version"])
            # The other half of the round that was not full.
            ended = optimizer.step({name: np.ones_like(array) for name, array in optimizer.gradients.items()})
            assert ended.version.version == session.version == int(expected["version"]) + 1
        assert [job.name for job in optd.jobs(server=server.address)] == ["digits"]
