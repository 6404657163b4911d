"""`optd` as a program: its flags, its log, its exit status."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from optd_server import cli

COMMAND = [sys.executable, "-m", "optd_server"]
READY_SECONDS = 30
STOP_SECONDS = 20


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without settings of optd."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")} | dict(more or {})


@dataclass(frozen=True)
class Program:
    """A server that runs, and the file that it logs to."""

    process: subprocess.Popen[bytes]
    address: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@contextmanager
def running(folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Starts a server on a free port, its log in `folder`; it is ended with the block, if it has not by itself."""
    address, log = folder / "address", folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--address-file", str(address), *flags],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=clean_environment(environment),
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not address.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        yield Program(process, address.read_text().strip(), log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def refuses_to_start(*flags: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs `optd` with flags that it must not start with; returns the one line that it says."""
    ended = subprocess.run(
        [*COMMAND, "--port", "0", *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        env=clean_environment(environment),
        check=False,
    )
    assert ended.returncode == 2, f"exit {ended.returncode}: {ended.stderr}"
    assert ended.stdout == ""
    return only_line(ended.stderr)


def refuses_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """As `refuses_to_start`, without a process of its own: for what has to be refused before anything is opened."""

    def started(*_: object) -> None:
        pytest.fail("the server would have started")

    monkeypatch.setattr("sys.argv", ["optd", "--port", "0", *flags])
    monkeypatch.setattr("optd_server.app.Server", started)
    monkeypatch.setattr(cli, "configure", lambda *_: None)  # logging is that of the tests
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return only_line(said.err)


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, f"one line should say what is wrong, not {len(lines)}:\n{text}"
    assert lines[0].startswith("optd: ")
    return lines[0]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
