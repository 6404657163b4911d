"""The program itself: help, version, where options may stand, pipes, questions."""

import json
import os
import pty
import re
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from optd.ctl.app import app, run
from optd.ctl.exits import MEANINGS, Exit

from .conftest import Optctl

COMMANDS = [
    *["status", "health", "jobs", "job", "groups", "group", "workers", "rejections", "algorithms"],
    *["explain", "watch", "bench", "set", "changes", "policy", "rollback", "delete", "doctor"],
]


def test_the_help_lists_commands_and_exit_codes():
    shown = CliRunner().invoke(app, ["--help"], env={"NO_COLOR": "1"})
    assert shown.exit_code == 0
    assert re.findall(r"^│ ([a-z]+) {2,}", shown.output, re.MULTILINE) == [*COMMANDS, "checkpoint"]
    words = " ".join(shown.output.split())
    for code, meaning in MEANINGS.items():
        assert f" {code.value} {meaning}" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_options_of_all(command: str):
    shown = CliRunner().invoke(app, [command, "-h"], env={"NO_COLOR": "1"})
    assert shown.exit_code == 0
    flags = set(re.findall(r"--[a-z][a-z-]+", shown.output))
    assert flags >= {
        "--server",
        "--token",
        "--token-file",
        "--tls-ca",
        "--tls-cert",
        "--tls-key",
        "--timeout",
        "--output",
        "--debug",
    }


@pytest.mark.slow
def test_the_version(optctl: Optctl):
    assert optctl("--version").out == "optctl 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "json", "jobs"],
        ["jobs", "-o", "json"],
        ["--output=json", "jobs"],
        ["-o", "table", "jobs", "--output", "json"],
        ["--server", "127.0.0.1:1", "jobs", "-ojson", "--server", "{address}"],
        ["--server", "{address}", "jobs", "-o", "json"],
    ],
)
def test_options_stand_before_or_after_and_the_later_one_counts(
    server, digits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    elsewhere = any("{address}" in argument for argument in arguments)
    monkeypatch.setenv("OPTD_SERVER", "127.0.0.1:1" if elsewhere else server.address)
    assert run([argument.format(address=server.address) for argument in arguments]) == Exit.OK
    out, err = capsys.readouterr()
    assert "digits" in [job["name"] for job in json.loads(out)]
    assert err == ""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["jobs"], ["--help"]])
def test_a_pipe_that_nobody_reads_is_no_error(optctl: Optctl, digits, arguments: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    with optctl.start(*arguments, stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code", "said"), [(b"y\n", 0, ""), (b"\n", 1, "was not deleted\n")])
def test_delete_asks_on_a_terminal(optctl: Optctl, train: Callable, answer: bytes, code: int, said: str):
    job = train()
    ours, theirs = pty.openpty()
    with optctl.start("-o", "json", "delete", job.name, stdin=theirs) as process:
        os.close(theirs)
        question = f"Delete {job.name} at version 0 (3 elements, 1 worker)? [y/N] "
        assert process.stderr.read(len(question)) == question
        os.write(ours, answer)
        out, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code
    assert err.endswith(said)
    assert [json.loads(out)["name"]] == [job.name] if code == 0 else out == ""


def test_on_a_terminal_tables_fit(server, digits):
    ours, theirs = pty.openpty()
    with Optctl(server.address, {"COLUMNS": "80", "TERM": "xterm"}).start("jobs", stdout=theirs) as process:
        os.close(theirs)
        seen = ""
        while "digits" not in seen:
            seen += os.read(ours, 65536).decode()
        process.communicate(timeout=60)
    os.close(ours)
    header = re.sub(r"\x1b\[[0-9;]*m", "", seen).splitlines()[0]
    assert len(header) <= 80
    assert header.split()[:7] == ["job", "algorithm", "policy", "version", "workers", "refused", "elements"]
    assert "parameters" not in header
