"""The demo and its worker, run as a newcomer runs them: to the end, interrupted, and with what can go wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import psutil
import pytest
from rich.console import Console

import optd
from optd.local import LocalServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from demo import JOB, KILLED_AT, train
from processes import Server

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRESS = re.compile(r"w[12]  step +\d+/\d+  loss \d+\.\d+  version \d+\n")
KILLED = re.compile(r"server killed after version (\d+)\n")
BACK = re.compile(r"server back at version (\d+), with all that it had acknowledged\n")


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts an example in a process group of its own, with no setting of optd but those in `environment`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
    return subprocess.Popen(
        [sys.executable, EXAMPLES / program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | environment,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it prints from here to its end."""
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


@dataclass(frozen=True)
class Demo:
    """A demo, and what it has printed."""

    process: subprocess.Popen[str]
    scratch: Path
    """The folder that it and its processes take for temporary files."""
    printed: list[str]

    def read_until(self, wanted: re.Pattern[str]) -> None:
        while not (self.printed and wanted.fullmatch(self.printed[-1])):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.printed.append(line)

    def children(self) -> dict[str, psutil.Process]:
        """The processes that it has started, by name."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            command = child.cmdline()
            found[command[command.index("--worker") + 1] if "--worker" in command else "server"] = child
        return found

    def left(self) -> list[psutil.Process]:
        """All processes that it has started, also those whose parent has ended."""
        return [found for found in psutil.process_iter() if _scratch_of(found) == str(self.scratch)]


def _scratch_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("TMPDIR")
    except psutil.Error:
        return None


@contextmanager
def training(scratch: Path, until: re.Pattern[str] = PROGRESS) -> Iterator[Demo]:
    """The demo once it has printed such a line. None of its processes and files outlives the block."""
    # A setting that would send the workers elsewhere, were it not the demo's own server that counts.
    process = start("demo.py", TMPDIR=str(scratch), OPTD_SERVER="127.0.0.1:1", OPTD_TOKEN="another server's")
    demo = Demo(process, scratch, [])
    try:
        demo.read_until(until)
        yield demo
        assert demo.left() == []
        assert list(scratch.iterdir()) == []
    finally:
        process.kill()
        for left in demo.left():
            left.kill()


def accuracy(output: str) -> float:
    """What the last line says, with its two decimals."""
    last = re.fullmatch(r"test accuracy: ([01]\.\d\d)", output.splitlines()[-1])
    assert last, output
    return float(last[1])


def test_the_demo_learns_to_read_digits_and_shows_its_groups(tmp_path: Path):
    with training(tmp_path) as demo:
        assert sorted(demo.children()) == ["server", "w1", "w2"]
        output, errors = finish(demo.process)
        assert (demo.process.returncode, errors) == (0, "")
    assert accuracy(output) >= 0.95
    # group, parameter, shape, lr, weight_decay, steps, norm
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert [row[:-1] for row in rows] == [
        ["hidden", "hidden.weight", "64 x 48", "0.05", "0.0001", "300"],
        ["output", "output.weight", "48 x 10", "0.1", "0.0001", "300"],
        ["biases", "hidden.bias", "48", "0.1", "0", "300"],
        ["biases", "output.bias", "10", "0.1", "0", "300"],
    ]
    assert all(float(row[-1]) > 0 for row in rows)
    assert len(output.splitlines()) < 50


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGINT), (os.kill, signal.SIGTERM)],
    ids=["ctrl-c", "int", "term"],
)
def test_a_signal_stops_the_demo_and_all_that_it_started(
    send: Callable[[int, int], None], number: signal.Signals, tmp_path: Path
):
    with training(tmp_path) as demo:
        send(demo.process.pid, number)
        _, errors = finish(demo.process)
        assert (demo.process.returncode, errors) == (128 + number, "demo: stopped\n")


@pytest.mark.parametrize("moment", [KILLED, BACK], ids=["while-the-server-is-killed", "after-its-restart"])
def test_a_signal_stops_the_demo_around_the_kill_too(moment: re.Pattern[str], tmp_path: Path):
    with training(tmp_path, moment) as demo:
        demo.process.terminate()
        _, errors = finish(demo.process)
        assert (demo.process.returncode, errors) == (128 + signal.SIGTERM, "demo: stopped\n")


@pytest.mark.parametrize(
    ("victim", "message"),
    [("w1", "demo: worker w1 ended with -9: it said nothing\n"), ("server", "demo: the server has ended\n")],
)
def test_the_demo_fails_with_one_line_where_a_part_of_it_dies(victim: str, message: str, tmp_path: Path):
    with training(tmp_path) as demo:
        demo.children()[victim].kill()
        _, errors = finish(demo.process)
        assert (demo.process.returncode, errors) == (1, message)


def test_a_server_that_dies_after_its_restart_ends_the_demo(tmp_path: Path):
    with training(tmp_path, BACK) as demo:
        demo.children()["server"].kill()
        _, errors = finish(demo.process)
        assert (demo.process.returncode, errors) == (1, "demo: the server has ended\n")


def test_the_demos_server_is_killed_and_comes_back_with_all_steps(tmp_path: Path):
    with training(tmp_path, KILLED) as demo:
        demo.read_until(BACK)
        killed, back = (int(pattern.fullmatch(demo.printed[index])[1]) for pattern, index in ((KILLED, -2), (BACK, -1)))
        assert 150 <= killed <= back <= 300
        _, errors = finish(demo.process)
        assert (demo.process.returncode, errors) == (0, "")


def trained(folder: Path, killed_at: int | None) -> tuple[dict[str, np.ndarray], int, bool]:
    """The weights that the demo comes to, the job's version, and whether it ends with another server process."""
    with Server(str(folder)) as server:
        first = server.process
        train(server, SimpleQueue(), Console(quiet=True), killed_at)
        with optd.connect(server.address, job=JOB) as session:
            return session.pull(), session.info().version.version, server.process is not first


def test_a_demo_whose_server_is_killed_comes_to_the_bits_of_one_that_nobody_disturbs(tmp_path: Path):
    killed, version, is_another = trained(tmp_path / "killed", KILLED_AT)
    undisturbed, rounds, is_another_undisturbed = trained(tmp_path / "undisturbed", None)
    assert (is_another, is_another_undisturbed) == (True, False)
    assert version == rounds == 300
    assert killed.keys() == undisturbed.keys()
    for name in killed:
        np.testing.assert_array_equal(killed[name], undisturbed[name], strict=True)


def test_one_worker_trains_against_a_running_server(server: LocalServer):
    worker = start("digits.py", "--server", server.address, "--worker", "w1")
    output, errors = finish(worker)
    assert (worker.returncode, errors) == (0, "")
    assert accuracy(output) >= 0.9
    assert [bool(PROGRESS.fullmatch(line + "\n")) for line in output.splitlines()] == [True] * 10 + [False]
    with optd.connect(server.address, job="digits") as session:
        assert {group.options.group: group.max_steps for group in session.groups()} == {
            "hidden": 300,
            "output": 300,
            "biases": 300,
        }
        assert [worker.name for worker in session.workers()] == ["w1"]


def test_workers_at_their_own_pace_share_a_job(server: LocalServer, name: str):
    steps = {"w1": 150, "w2": 100}
    workers = [
        start("digits.py", "--server", server.address, "--job", name, "--worker", worker, "--steps", str(count))
        for worker, count in steps.items()
    ]
    for worker in workers:
        _, errors = finish(worker)
        assert worker.returncode == 0
        # One that starts when the other has come to its end is told that it goes on with its weights.
        assert not errors or f"job '{name}' at {server.address} exists" in errors
    with optd.connect(server.address, job=name) as session:
        assert session.info().version.version == sum(steps.values())
        assert {worker.name: worker.pushes for worker in session.workers()} == steps


def test_the_same_rounds_give_the_same_bits(server: LocalServer, name: str):
    def last_losses(job: str) -> list[float]:
        common = ("--server", server.address, "--job", job, "--sync", "--steps", "40", "--json")
        workers = [start("digits.py", *common, "--worker", f"w{i}", "--shard", f"{i}/2") for i in (1, 2)]
        return [json.loads(finish(worker)[0].splitlines()[-2])["loss"] for worker in workers]

    assert last_losses(f"{name}-a") == last_losses(f"{name}-b")


def test_a_worker_shows_its_token(tmp_path: Path):
    tokens = tmp_path / "tokens"
    tokens.write_text("open-sesame-open-sesame\n")
    with optd.local("--token-file", str(tokens)) as secured:
        arguments = ("--server", secured.address, "--worker", "w1", "--steps", "3")
        for environment in ({"OPTD_TOKEN": "open-sesame-open-sesame"}, {"OPTD_TOKEN_FILE": str(tokens)}):
            worker = start("digits.py", *arguments, "--job", next(iter(environment)), **environment)
            _, errors = finish(worker)
            assert (worker.returncode, errors) == (0, "")
        worker = start("digits.py", *arguments)
        _, errors = finish(worker)
        assert worker.returncode == 1
        assert errors == "digits: this server wants a token: pass token= or set OPTD_TOKEN\n"


def test_a_worker_without_a_server_says_so_in_one_line():
    worker = start("digits.py", "--server", "127.0.0.1:1")
    _, errors = finish(worker)
    assert worker.returncode == 1
    assert re.fullmatch(r"digits: no optd server answers at 127\.0\.0\.1:1: tried for [\d.]+ s .*\n", errors)
