"""A server with jobs to look at, and `optctl` as a process beside it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import optd
from optd.local import LocalServer, local

SECONDS = 60


@dataclass(frozen=True)
class Ended:
    """What a process of `optctl` left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Optctl:
    """Runs `optctl` against a server, with nothing else in its environment that it would heed."""

    def __init__(self, address: str, environment: Mapping[str, str] | None = None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            inherited.pop(name, None)
        self.environment = inherited | {"OPTD_SERVER": address, "PYTHONIOENCODING": "utf-8"} | dict(environment or {})

    def start(self, *arguments: str, **how: Any) -> "Running":
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        command = [sys.executable, "-m", "optd.ctl", *arguments]
        return Running(command, env=self.environment, text=True, encoding="utf-8", **streams)

    def __call__(self, *arguments: str) -> Ended:
        return finish(self.start(*arguments))

    def both(self, *arguments: str) -> tuple[Ended, Any]:
        """Runs a command that goes well for people, and beside it for programs; returns the JSON of the latter."""
        people, programs = self.start(*arguments), self.start("-o", "json", *arguments)
        shown, told = finish(people), finish(programs)
        assert (shown.code, shown.err) == (told.code, told.err) == (0, "")
        return shown, told.document


class Running(subprocess.Popen[str]):
    """A program that does not outlive a test that fails, whatever it waits for."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


def finish(process: "subprocess.Popen[str]") -> Ended:
    """Waits for its end."""
    with process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return Ended(process.returncode, out, err)


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """One server for all of this folder; it is quick to hand out leases."""
    with local() as running:
        yield running


@pytest.fixture(scope="session")
def optctl(server: LocalServer) -> Optctl:
    return Optctl(server.address)


@dataclass
class Training:
    """A job that its test can move on."""

    session: optd.Session
    optimizer: optd.Optimizer

    @property
    def name(self) -> str:
        return self.session.job

    def step(self) -> int:
        """Makes a step; returns the version then."""
        for name, array in self.optimizer.gradients.items():
            if name != "output.bias":
                array[...] = np.linspace(-1, 1, array.size, dtype=array.dtype).reshape(array.shape)
        gradients = {name: array for name, array in self.optimizer.gradients.items() if name != "output.bias"}
        return self.optimizer.step(gradients).version.version


@pytest.fixture(scope="session")
def digits(server: LocalServer) -> Iterator[Training]:
    """The job `digits`, at version 3, with a refused push; no test changes it."""
    with optd.connect(server.address, job="digits", worker="trainer") as session:
        training = Training(session, optd.AdamW(_groups(), lr=1e-3, session=session))
        for _ in range(3):
            training.step()
        with pytest.raises(optd.errors.NonfiniteGradient):
            training.optimizer.step({"hidden.bias": np.array([1, np.nan, 1, 1], np.float32)})
        yield training


def _groups() -> list[dict[str, Any]]:
    weights = np.linspace(-0.5, 0.5, 12, dtype=np.float32)
    return [
        {"name": "hidden", "params": {"hidden.weight": weights.reshape(3, 4)}, "lr": 0.01},
        {"name": "output", "params": {"output.weight": np.arange(8.0).reshape(4, 2), "output.scale": np.ones(())}},
        {
            "name": "biases",
            "params": {"hidden.bias": np.zeros(4, np.float32), "output.bias": np.zeros(2, np.float64)},
            "weight_decay": 0.0,
        },
    ]


@pytest.fixture
def train(server: LocalServer, name: str) -> Iterator[Callable[..., Training]]:
    """Makes a job of the test's own, on the shared server or on another one."""
    sessions = []

    def make(address: str = server.address) -> Training:
        session = optd.connect(address, job=name, worker="w0", timeout=20)
        sessions.append(session)
        return Training(session, optd.SGD({"w": np.ones(3)}, lr=0.1, session=session))

    yield make
    for session in sessions:
        session.close()
