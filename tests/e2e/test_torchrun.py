"""The example for torchrun, run for real: a rank is killed and started again, and the number of ranks changes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import optd
from optd.local import LocalServer, local

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


def kill(process: "subprocess.Popen[str]") -> None:
    """Kills an agent and its ranks, as the end of their host does."""
    with suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()


@contextmanager
def torchrun(server: LocalServer, log: Path, *arguments: str, ddp: bool = False) -> Iterator[Launch]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
    # A rank whose partner is dead waits in vain for its round; there is no need to wait long for the step.
    settings = {"OPTD_SERVER": server.address, "OMP_NUM_THREADS": "1", "OPTD_TERM_SECONDS": "1"}
    # Otherwise ranks that are started again may find the addresses of the dead in the store that they meet in.
    settings |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", *arguments]
    command = [*launcher, str(EXAMPLE), "--steps", str(STEPS), *(["--ddp"] if ddp else [])]
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            env=inherited | settings,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        launch = Launch(process, log)
        try:
            yield launch
        finally:
            kill(process)
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
@pytest.mark.parametrize(
    "ddp",
    [pytest.param(True, id="ddp", marks=pytest.mark.slow), pytest.param(False, id="plain", marks=pytest.mark.soak)],
)
def test_a_killed_rank_is_started_again_and_the_job_goes_on(
    server: LocalServer, undisturbed: float, tmp_path: Path, ddp: bool
) -> None:
    how = ["--nproc-per-node", "2", "--max-restarts", "2"]
    with torchrun(server, tmp_path / "log", *how, ddp=ddp) as launch:
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "ddp",
    [pytest.param(True, id="ddp", marks=pytest.mark.soak), pytest.param(False, id="plain", marks=pytest.mark.slow)],
)
def test_a_launch_shrinks_to_the_host_that_is_left(undisturbed: float, tmp_path: Path, ddp: bool) -> None:
    """Two agents stand for two hosts, one of which dies with its rank. The other one's rank goes on alone."""
    port = free_port()
    how = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    how += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "digits"]
    conf = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"
    how += ["--rdzv-conf"]
    with ExitStack() as stack:
        server = stack.enter_context(local("--lease-seconds", "5"))
        agents = [
            stack.enter_context(torchrun(server, tmp_path / f"log{host}", *how, f"{conf},is_host={1 - host}", ddp=ddp))
            for host in range(2)
        ]
        for agent in agents:
            agent.read_until(lambda line: line["version"] >= KILLED_AT)
        assert {line["ranks"] for agent in agents for line in agent.lines} == {2}
        kill(agents[1].process)
        agents[0].read_to_the_end()
    lines = agents[0].lines
    (again,) = [line for line in lines if line["what"] == "begins" and line["ranks"] == 1]
    (end,) = agents[0].told("ends")
    assert {line["job"] for line in lines} == {end["job"]}
    assert KILLED_AT <= again["version"] < STEPS
    assert (end["ranks"], end["version"]) == (1, STEPS)
    assert abs(end["accuracy"] - undisturbed) <= 0.01


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
