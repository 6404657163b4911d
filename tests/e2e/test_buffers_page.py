"""docs/buffers.md is true: in its program the evaluator has the trainer's loss."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optd.local import LocalServer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "buffers.md"


def test_both_models_have_the_same_loss(server: LocalServer):
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    program = program.replace("127.0.0.1:50051", server.address)
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    trained, evaluated = done.stdout.splitlines()
    assert trained == evaluated
    assert float(trained) < 100
