"""`optctl doctor` on directories that a server has left: sound, torn, and damaged in every way."""

import json
import os
import pty
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.faults.durable import Durable
from tests.faults.processes import wait_for
from tests.faults.test_durability import COMMIT, flip, folder_of, train, version_of

import optd
from optd_server.doctor.examination import Examination, FoundJob, State, examine
from optd_server.durability.data_dir import DataDir, JobFolder
from optd_server.durability.log.framing import HEADER
from optd_server.durability.log.scan import Tail, records, segment_paths
from optd_server.durability.problems import NewerFormat
from optd_server.durability.snapshots.folder import snapshots_in

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """What a server leaves: `j` has two snapshots and all of its log, `killed` a log alone."""
    folder = tmp_path_factory.mktemp("left") / "data"
    with Durable(folder, *COMMIT, "--snapshot-versions", "4", "--snapshot-seconds", "3600") as server:
        train(server, 4)
        wait_for(lambda: len(snapshots_in(folder / "jobs" / "00000001-j" / "snapshots")) == 1, "a snapshot")
        train(server, 2)
        server.stop()
    with Durable(folder, *COMMIT, "--snapshot-seconds", "3600") as server:
        train(server, 3, job="killed")
        server.kill()
    return folder


@pytest.fixture
def data(left, tmp_path) -> Path:
    return Path(shutil.copytree(left, tmp_path / "data"))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files, with when each was changed."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def look(data: Path) -> Examination:
    before = contents(data)
    opened = DataDir.look(data)
    try:
        return examine(opened)
    finally:
        opened.close()
        assert contents(data) == before


def job(data: Path, name: str = "j") -> FoundJob:
    return next(each for each in look(data).jobs if each.job == name)


def doctor(*arguments: object, stdin: int = subprocess.DEVNULL) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "optd.ctl", "doctor", *map(str, arguments)]
    wide = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(command, stdin=stdin, env=wide, capture_output=True, text=True, timeout=60, check=False)


def document(*arguments: object) -> tuple[dict[str, Any], int]:
    ended = doctor("-o", "json", *arguments)
    assert ended.stderr == ""
    return json.loads(ended.stdout), ended.returncode


def tear(folder: JobFolder, *, rubbish: bytes = b"rec\n" + b"x" * 33) -> tuple[Path, int]:
    """Add bytes behind the last record; return where."""
    tail = Tail()
    list(records(folder.log, tail))
    assert tail.path is not None
    with tail.path.open("r+b") as file:
        file.truncate(tail.end + 4096)
        file.seek(tail.end)
        file.write(rubbish)
    return tail.path, tail.end


def test_a_sound_directory(data):
    ended = doctor(data)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "j: good\n  is recovered at version 6: the snapshot of version 6\n" in ended.stdout
    assert "killed: good\n  is recovered at version 3: " in ended.stdout
    assert ended.stdout.endswith("Nothing is damaged.\n")
    found = job(data)
    assert [each.version for each in found.snapshots] == [4, 6]
    assert (found.version, found.snapshot_version, found.replayed, found.state) == (6, 6, 0, State.GOOD)
    assert found.segments[-1].last_event == found.event


def test_5_a_torn_tail_is_cut_off_after_asking(data):
    path, end = tear(folder_of(data, "killed"))
    size = path.stat().st_size
    ended = doctor(data)
    assert ended.returncode == 0
    assert "killed: good, with a torn tail" in ended.stdout
    assert "37 bytes behind the last event are cut off" in ended.stdout

    refused = doctor(data, "--repair")
    assert refused.returncode == 2
    assert refused.stderr == "optctl: there is no terminal to ask on: pass --yes to repair\n"
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    ended = doctor(data, "--repair", stdin=theirs)
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"{path} ends at byte {end} in 37 bytes of an event that was not finished.\nCut them"
    )
    assert path.stat().st_size == size
    os.write(ours, b"y\n")
    ended = doctor(data, "--repair", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0
    assert f"Cut 37 bytes off {path} at byte {end}." in ended.stdout
    assert "killed: good\n" in ended.stdout
    assert path.stat().st_size == end
    with Durable(data) as server:
        assert version_of(server, "killed") == 3


def test_repair_with_yes_does_not_ask_and_touches_no_damage(data):
    path, end = tear(folder_of(data, "killed"))
    damaged = segment_paths(folder_of(data).log)[0]
    flip(damaged, HEADER + 10)
    before = damaged.read_bytes()
    found, code = document(data, "--repair", "--yes")
    assert code == 1
    assert found["cut"] == [{"path": str(path), "offset": end, "bytes": 37}]
    assert {each["job"]: each["state"] for each in found["jobs"]} == {"j": "lost", "killed": "good"}
    assert damaged.read_bytes() == before
    assert document(data, "--repair", "--yes")[0]["cut"] == []


@pytest.mark.parametrize("seed", range(8))
def test_6_a_flipped_bit_of_a_log_is_named_with_its_place(data, seed):
    folder = folder_of(data)
    path = segment_paths(folder.log)[0]
    found = [(record.offset, record.offset + HEADER + len(record.data)) for record in records(folder.log, Tail())]
    draw = random.Random(seed)
    start, stop = draw.choice(found[:-1])
    flip(path, draw.randrange(start, stop))
    after = job(data)
    assert after.state == State.LOST
    assert after.segments[0].problem is not None
    assert (after.segments[0].problem.path, after.segments[0].problem.offset) == (str(path), start)
    assert f"{path} is damaged at byte {start}" in after.why
    ended = doctor(data)
    assert ended.returncode == 1
    assert "j: DAMAGED, and not recovered" in ended.stdout
    assert ended.stdout.endswith("unless with --recover skip; then without j.\n")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("which", [0, 1])
def test_6_a_flipped_bit_of_a_snapshot_is_named_and_costs_nothing_while_the_log_is_whole(data, seed, which):
    snapshot = snapshots_in(folder_of(data).snapshots)[which]
    draw = random.Random(seed)
    path = draw.choice(sorted(snapshot.path.iterdir()))
    flip(path, draw.randrange(path.stat().st_size))
    found = job(data)
    problem = found.snapshots[which].problem
    if path.name == "manifest.json" and problem is None:
        return  # a space that became another one
    assert problem is not None
    assert problem.path == str(path)
    assert (found.state, found.version) == (State.DAMAGED, STEPS)
    assert found.snapshot_version == (6 if which == 0 else 4)


def test_the_newest_snapshot_is_damaged_and_there_is_no_log(data):
    folder = folder_of(data)
    for path in segment_paths(folder.log):
        path.unlink()
    path = next(snapshots_in(folder.snapshots)[-1].path.glob("weights-*"))
    flip(path, 300)
    found = job(data)
    assert (found.state, found.version) == (State.LOST, None)
    assert str(path) in found.why
    assert [each.problem is None for each in found.snapshots] == [True, False]


@pytest.mark.parametrize("name", ["manifest.json", "weights-small.safetensors"])
def test_a_file_of_a_snapshot_is_missing(data, name):
    path = snapshots_in(folder_of(data).snapshots)[-1].path / name
    path.unlink()
    found = job(data)
    assert (found.state, found.version) == (State.DAMAGED, STEPS)
    problem = found.snapshots[-1].problem
    assert problem is not None
    assert (problem.path, problem.problem) == (str(path), "the file is missing")


def test_the_first_segments_of_a_log_are_missing(tmp_path):
    """A log that begins behind the last good snapshot is not gone on with as if nothing was missing."""
    with Durable(tmp_path / "data", *COMMIT) as server:
        train(server, 3)
        server.restart()
        train(server, 3)
        server.kill()
    data = tmp_path / "data"
    first, second = segment_paths(folder_of(data).log)
    first.unlink()
    found = job(data)
    assert found.state == State.LOST
    assert f"{second} is damaged at byte 0: it is the first segment, and events 1 to" in found.why


def test_job_files_that_cannot_be_read_are_named(data):
    path = folder_of(data).path / "job.json"
    path.write_text("{")
    (data / "epochs.json").write_text('{"jobs": 3}')
    found = look(data)
    assert [(problem.path, problem.offset) for problem in found.problems] == [
        (str(data / "epochs.json"), 0),
        (str(path), 0),
    ]
    assert [each.job for each in found.jobs] == ["killed"]
    ended = doctor(data)
    assert ended.returncode == 1
    assert ended.stdout.endswith("A server does not start on this directory.\n")


def test_a_job_of_an_unlogged_level(tmp_path):
    data = tmp_path / "data"
    with Durable(data, "--snapshot-versions", "4", "--snapshot-seconds", "3600") as server:
        train(server, 4)
        wait_for(lambda: optd.jobs(server=server.address)[0].version.durable_version == 4, "a snapshot")
        train(server, 1, worker="other")
        server.kill()
    ended = doctor(data)
    assert ended.returncode == 0
    assert "is recovered at version 4: the snapshot of version 4" in ended.stdout
    assert "steps behind this version are lost" in ended.stdout
    assert job(data).unlogged


def test_leftovers_are_listed_and_left(data):
    unfinished = folder_of(data).snapshots / ".new-1-1"
    unfinished.mkdir()
    removed = data / "jobs" / ".00000009-x.removed"
    removed.mkdir()
    assert job(data).leftovers == (str(unfinished),)
    assert look(data).leftovers == (str(removed),)
    assert doctor(data, "--repair", "--yes").returncode == 0
    assert unfinished.exists()
    assert removed.exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "is no data directory: it has no optd.json"),
        (lambda path: None, "is no data directory: there is no such folder"),
        (lambda path: path.write_text("x"), "is no data directory: there is no such folder"),
    ],
    ids=["empty", "missing", "a file"],
)
def test_no_data_directory(tmp_path, make, says):
    make(tmp_path / "x")
    before = contents(tmp_path)
    for arguments in ([], ["--repair", "--yes"]):
        ended = doctor(tmp_path / "x", *arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == f"optctl: {tmp_path / 'x'} {says}\n"
    assert contents(tmp_path) == before


def test_12_a_newer_format_is_refused_with_both_versions(data):
    for path in (data / "optd.json", folder_of(data).path / "job.json", max(data.rglob("manifest.json"))):
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), "format": 7}))
        with pytest.raises(NewerFormat):
            look(data)
        ended = doctor(data)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
        assert f"{path} has format 7, and this version of optd reads formats up to 1" in ended.stderr
        path.write_text(before)


def test_11_a_directory_in_use_is_refused(data):
    with Durable(data) as server:
        ended = doctor(data, "--repair", "--yes")
        assert (ended.returncode, ended.stdout) == (2, "")
        pid = server.server.process.pid
        assert ended.stderr.startswith(f"optctl: {data} is in use by another server (process {pid} on ")
        assert ended.stderr.count("\n") == 1
