"""A good client beside one that behaves badly: the slowest hundredth of its steps, and of the same steps alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from bench import ours
from bench.row import MILLISECONDS, Row, Side, Sides, seconds
from bench.sizes import Size, single

ABUSER = Path(__file__).parents[2] / "faults" / "abuser.py"
KINDS = {"never-reads": "never reads its answers", "floods": "floods the server", "sends-garbage": "sends garbage"}
SETTINGS = ("--max-inflight-bytes", "64MiB", "--idle-seconds", "1")


@contextmanager
def _abuser(address: str, how: str) -> Iterator["subprocess.Popen[str]"]:
    """Yield it when it has begun; it stands still until it is resumed."""
    command = [sys.executable, str(ABUSER), address, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            os.kill(process.pid, signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def _beside(how: str) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        with (
            ours.server(*SETTINGS) as server,
            ours.server(*SETTINGS) as quiet,
            ours.job(server.address, single(size.small), lane="grpc") as mine,
            ours.job(quiet.address, single(size.small), lane="grpc") as alone,
            _abuser(server.address, how) as abuser,
        ):
            tormented = Side(
                _p99(mine.step, size.small_steps),
                mine.weights,
                resume=lambda: os.kill(abuser.pid, signal.SIGCONT),
                pause=lambda: os.kill(abuser.pid, signal.SIGSTOP),
            )
            yield Sides(tormented, Side(_p99(alone.step, size.small_steps)))

    return build


def _p99(step: Callable[[], None], times: int) -> Callable[[], float]:
    measure = seconds(step)
    return lambda: float(np.percentile([measure() for _ in range(times)], 99))


ROWS = tuple(
    Row(
        name=f"step() of {{small}} elements, p99, beside a client that {words}",
        reference="the same alone",
        build=_beside(how),
        unit=MILLISECONDS,
    )
    for how, words in KINDS.items()
)
