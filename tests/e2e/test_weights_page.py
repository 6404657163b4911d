"""docs/weights.md is true: its programs run, and print what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optd.local import LocalServer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weights.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
PRINTED = [
    ["0 [0. 0. 0. 0.]", "1 [1. 1. 1. 1.]", "2 [2. 2. 2. 2.]", "3 [3. 3. 3. 3.]"],
    ["True", "1 0"],
]


@pytest.mark.parametrize(("program", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)))
def test_the_programs_of_the_page_run(server: LocalServer, program: str, printed: list[str]):
    program = program.replace("127.0.0.1:50051", server.address)
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == printed
