"""`watch` as a real process: its lines, its live view, and all of its ends."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

import optd
from optd.local import local
from optd_wire.values import JobReport

from .conftest import SECONDS, Optctl


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code, and what it said on standard error."""
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


def test_a_json_line_for_each_report(optctl: Optctl, train: Callable):
    job = train()
    with optctl.start("watch", job.name, "-o", "json", "--count", "2", "--interval", "0.05") as watching:
        first = json.loads(watching.stdout.readline())
        assert list(first) == [field.name for field in fields(JobReport)]
        assert first["job"]["version"]["version"] == 0
        version = job.step()
        second = json.loads(watching.stdout.readline())
        assert second["job"]["version"]["version"] == version
        assert [worker["name"] for worker in second["workers"]] == ["w0"]
        assert watching.stdout.read() == ""
        assert ended(watching) == (0, "")


@pytest.mark.slow
def test_a_line_for_each_report_until_ctrl_c(optctl: Optctl, train: Callable):
    job = train()
    with optctl.start("watch", job.name, "--interval", "0.05") as watching:
        line = watching.stdout.readline()
        assert line.split("  ")[1:] == [job.name, "version 0", "- steps/s", "workers 1", "refused 0", "lr group0=0.1\n"]
        job.step()
        line = watching.stdout.readline()
        assert re.search(r"  version 1  [\d.]+ steps/s  ", line)
        watching.send_signal(signal.SIGINT)
        assert ended(watching) == (0, "")


@pytest.mark.slow
def test_live_on_a_terminal_until_ctrl_c(optctl: Optctl, train: Callable):
    job = train()
    ours, theirs = pty.openpty()
    with optctl.start("watch", job.name, "--interval", "0.05", stdin=theirs, stdout=theirs) as watching:
        os.close(theirs)
        seen = read_until(ours, "version 0")
        assert job.name in seen
        job.step()
        seen = read_until(ours, "version 1") + read_until(ours, "w0")
        assert "group0" in seen
        watching.send_signal(signal.SIGINT)
        seen = read_until(ours, "\x1b[?25h")  # the cursor is shown again
        assert "Traceback" not in seen
        assert ended(watching) == (0, "")
    os.close(ours)


def read_until(terminal: int, words: str) -> str:
    seen = ""
    while words not in re.sub(r"\x1b\[[0-9;]*m", "", seen):
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@pytest.mark.slow
def test_a_deleted_job_ends_it_with_5(optctl: Optctl, train: Callable):
    job = train()
    with optctl.start("watch", job.name, "--interval", "0.05") as watching:
        watching.stdout.readline()
        assert optctl("delete", job.name, "--yes").code == 0
        assert ended(watching) == (5, f"optctl: no job '{job.name}' on this server\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGTERM, "the server is shutting down"), (signal.SIGKILL, "the connection to")]
)
def test_a_server_that_stops_ends_it_with_3(train: Callable, number: int, words: str):
    with local("--grace-seconds", "2") as server:
        job = train(server.address)
        with Optctl(server.address).start("watch", job.name, "--interval", "0.05") as watching:
            watching.stdout.readline()
            server.process.send_signal(number)
            code, err = ended(watching)
            assert code == 3
            assert err.startswith(f"optctl: {words}")
            assert err.count("\n") == 1


@pytest.mark.slow
def test_a_line_has_the_lr_that_a_schedule_makes(optctl: Optctl, server):
    with optd.connect(server.address, job="watched") as session:
        optimizer = optd.SGD({"w": np.zeros(2)}, lr=1.0, lr_schedule="linear(steps=4)", session=session)
        optimizer.step({"w": np.ones(2)})
        assert optctl("watch", "watched", "--count", "1").out.endswith("  lr group0=0.75\n")
