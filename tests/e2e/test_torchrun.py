"""The example for torchrun, run for real: a rank is killed and started again, and the number of ranks changes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import optd
from optd.local import LocalServer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torchrun_digits.py"
STEPS = 400
KILLED_AT = 120
Line = dict[str, Any]


class Launch:
    """A torchrun of the example, and the lines that its ranks print."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process = process
        self._log = log
        self.lines: list[Line] = []

    def read_until(self, wanted: Callable[[Line], bool]) -> Line:
        """Reads up to the first line that is wanted."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.lines.append(json.loads(text))
            if wanted(self.lines[-1]):
                return self.lines[-1]
        pytest.fail(f"torchrun ended: {self._log.read_text()}")

    def read_to_the_end(self) -> None:
        assert self.process.stdout is not None
        self.lines += map(json.loads, self.process.stdout)
        assert self.process.wait() == 0, self._log.read_text()

    def told(self, what: str) -> list[Line]:
        return [line for line in self.lines if line["what"] == what]


@contextmanager
def torchrun(server: LocalServer, log: Path, *arguments: str) -> Iterator[Launch]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
    # A rank whose partner is dead waits in vain for its round; there is no need to wait long for the step.
    settings = {"OPTD_SERVER": server.address, "OMP_NUM_THREADS": "1", "OPTD_TERM_SECONDS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, str(EXAMPLE), "--steps", str(STEPS)]
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            env=inherited | settings,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        launch = Launch(process, log)
        try:
            yield launch
        finally:
            # The agent and its ranks; if they have ended, their group is no more.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            process.stdout.close()
            process.wait()


@pytest.fixture(scope="module")
def undisturbed(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The accuracy of two ranks that nobody disturbs."""
    with torchrun(server, tmp_path_factory.mktemp("torchrun") / "log", "--nproc-per-node", "2") as launch:
        launch.read_to_the_end()
    ends = launch.told("ends")
    assert sorted(line["rank"] for line in ends) == [0, 1]
    assert {line["version"] for line in ends} == {STEPS}
    (accuracy,) = {line["accuracy"] for line in ends}
    assert accuracy > 0.9
    assert ends[0]["job"] not in [job.name for job in optd.jobs(server=server.address)]  # it ended with its ranks
    return float(accuracy)


@pytest.mark.timeout(300)
def test_a_killed_rank_is_started_again_and_the_job_goes_on(
    server: LocalServer, undisturbed: float, tmp_path: Path
) -> None:
    how = ["--nproc-per-node", "2", "--max-restarts", "2"]
    with torchrun(server, tmp_path / "log", *how) as launch:
        victim = launch.read_until(lambda line: line["rank"] == 1 and line["version"] >= KILLED_AT)
        os.kill(victim["process"], signal.SIGKILL)
        launch.read_to_the_end()
    first, again = launch.told("begins")[:2], launch.told("begins")[2:]
    assert sorted(line["rank"] for line in again) == [0, 1]
    for line in again:
        (before,) = (each for each in first if each["rank"] == line["rank"])
        assert (line["job"], line["worker"]) == (before["job"], before["worker"])
        assert line["worker"].startswith(f"rank000{line['rank']}-")
        assert line["epoch"] > before["epoch"]
        assert KILLED_AT <= line["version"] <= STEPS
    ends = launch.told("ends")
    assert {(line["rank"], line["version"]) for line in ends} == {(0, STEPS), (1, STEPS)}
    assert abs(ends[0]["accuracy"] - undisturbed) <= 0.01
