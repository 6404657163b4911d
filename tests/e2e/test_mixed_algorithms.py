"""docs/mixed-algorithms.md: its programs run, print what it shows, and what it says of options holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import optd
from optd.local import LocalServer

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "mixed-algorithms.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHOWN = dict(re.findall(r"^```python\n([^`]*)^```\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_runs(server: LocalServer, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program.replace("127.0.0.1:50051", server.address)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == SHOWN.get(program, "")


def test_one_program_shows_what_it_prints() -> None:
    assert len(PROGRAMS) == 3
    assert len(SHOWN) == 1


def test_a_group_can_override_a_schedule_that_it_cannot_have(server: LocalServer) -> None:
    groups = [{"params": np.ones((2, 2)), "algorithm": "muon", "schedules": None}, {"params": np.ones(2)}]
    with optd.AdamW(groups, schedules={"betas[0]": optd.schedules.Linear(steps=5)}, server=server.address) as optimizer:
        assert "schedules" not in optimizer.session.groups()[0].options.options
        assert "schedules" in optimizer.session.groups()[1].options.options
