"""Programs that a shell has started in the background, where Ctrl-C is ignored."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.programs import clean_environment, running

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_tests_that_interrupt_themselves_pass_in_the_background():
    tests = ROOT / "tests/client/transport/test_call_threads.py"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", str(tests)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=ignore_interrupts,
        env=clean_environment(),
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_server_in_the_background_stops_on_sigterm(tmp_path: Path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the server inherits
    try:
        with running(tmp_path) as program:
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(20) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped" in program.log
