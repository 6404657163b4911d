"""Rows 2 and 9 of the fault table: each call that changes the disk fails once, or is the server's last one.

Afterwards a server without faults has every step that was acknowledged, and none of them twice. Which calls there are
is not listed here: each kind is failed at its first, second, third, ... call, until a server makes no more of them.
"""

import shutil
import signal
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.faults.durable import Durable
from tests.faults.processes import in_background
from tests.faults.traced import CALLS, calls_on, injected, lines_of, skip_unless_traceable

import optd
from optd_server.durability.data_dir import DataDir
from optd_wire.errors import DiskFull, InvalidRequest, Unreachable

SIZE = 30_000
"""Elements of a gradient: a few fill a segment of the log."""
FROZEN = 1 << 18
"""Elements of a group that nothing changes: snapshots share its file."""
STEPS = 4
LOG = ("--durability", "log", "--fsync", "commit", "--snapshot-seconds", "0.05")
SNAPSHOT = ("--durability", "snapshot", "--snapshot-seconds", "3600")
LEVELS = {"log": LOG, "snapshot": SNAPSHOT}
FLAGS = ("--keep-snapshots", "1", "--kernels", "numpy", "--grace-seconds", "1")
BEFORE_JOBS = 3
"""The most calls of one kind that a server makes when it makes its data directory."""
KILL, EIO, ENOSPC = "signal=KILL", "error=EIO", "error=ENOSPC"
EINTR = "error=EINTR"
STATUS = {KILL: -signal.SIGKILL, EIO: 74, ENOSPC: 74, EINTR: 0}
"""How a server ends. If the disk is full, it goes on where it can."""


def gradient(number: int) -> np.ndarray:
    return np.full(SIZE, number, np.float32)


def replayed(steps: int) -> np.ndarray:
    """What SGD with momentum makes of the first steps."""
    weights, momentum = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    for number in range(1, steps + 1):
        momentum = np.float32(0.5) * momentum + gradient(number) if number > 1 else gradient(number)
        weights -= momentum
    return weights


class Worker:
    """Makes steps, and goes on with a server that comes back."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self.acknowledged = 0
        self.refused = 0

    def train(self) -> None:
        with optd.connect(self.address, job="j", worker="w", timeout=self.timeout, durable=True) as session:
            groups = [
                {"params": {"w": np.zeros(SIZE, np.float32)}},
                {"params": {"frozen": np.ones(FROZEN, np.float32)}},
            ]
            optimizer = None
            while optimizer is None:
                with suppress(DiskFull):  # once for each thread of the server that writes
                    optimizer = optd.SGD(groups, lr=1.0, momentum=0.5, session=session)
            while self.acknowledged < STEPS:
                try:
                    optimizer.step({"w": gradient(self.acknowledged + 1)})
                except DiskFull:
                    self.refused += 1
                    assert self.refused < 20
                    continue
                self.acknowledged += 1
                time.sleep(0.06)  # a snapshot is due after 50 ms


def state_of(server: Durable) -> tuple[int, np.ndarray]:
    jobs = optd.jobs(server=server.address)
    if not jobs:
        return 0, np.zeros(SIZE, np.float32)
    with optd.connect(server.address, job="j", worker="reader", timeout=30) as session:
        found = session.pull(parameters=["w"])
    return jobs[0].version.version, found["w"]


def prepared(scratch: Path, begin: str) -> Path:
    """A data directory: `new` is none, and `known` is one without a job."""
    data = scratch / "data"
    shutil.rmtree(data, ignore_errors=True)
    if begin == "known":
        DataDir.open(data).close()
    return data


@dataclass
class Outcome:
    """What came of a fault."""

    happened: bool
    """False: the server made fewer such calls."""
    failed: list[str]
    """The calls on the data directory that the fault has hit."""
    seen: list[str]
    """All calls of the kind on the data directory."""


def fail_once(scratch: Path, level: str, begin: str, kind: str, what: str, number: int | str) -> Outcome:
    """Trains with one fault, and again without; asserts that nothing is lost or repeated."""
    data = prepared(scratch, begin)
    server = Durable(data, *LEVELS[level], *FLAGS)
    worker = Worker(server.address, timeout=30 if level == "log" else 3)
    training, status = None, None
    with (
        injected(kind, what, number, scratch) as trace,
        suppress(Unreachable, InvalidRequest),
    ):  # it may end before it serves
        server.start()
        training = in_background(worker.train)
        status = ended(server, training)
        server.server.stop()
    outcome = outcome_of(data, trace, what)
    if status is not None:
        # A file that cannot be linked is written.
        goes_on = not outcome.failed or (what == ENOSPC and status == 0) or (what == EIO and kind == "link")
        assert status == (0 if goes_on else STATUS[what]), outcome.failed
        if what == EINTR:
            assert worker.acknowledged == STEPS
    if level == "snapshot":  # steps may be lost, so the worker must not go on: the next server is elsewhere
        server = Durable(data, *LEVELS[level], *FLAGS)
    with server:
        if training is not None and level == "log":
            training.result(30)
            assert_replayed(server, STEPS, STEPS)
        else:
            if training is not None:
                training.exception(30)
            assert_replayed(server, worker.acknowledged, worker.acknowledged + 1)
    return outcome


def outcome_of(data: Path, trace: Path, what: str) -> Outcome:
    lines = lines_of(trace)
    sign = "= ?" if what == KILL else "(INJECTED)"
    failed = [line for line in lines if line.endswith(sign)]
    return Outcome(bool(failed), calls_on(data, failed), calls_on(data, lines))


def ended(server: Durable, training: "Future[None]") -> int:
    """The exit status of a server that is asked to end when the training is through, if it still runs then."""
    process = server.server.process
    while process.poll() is None and not training.done():
        wait([training], 0.02)
    if process.poll() is None:
        process.terminate()
    return process.wait(30)


def assert_replayed(server: Durable, least: int, most: int) -> None:
    version, weights = state_of(server)
    assert least <= version <= most
    assert np.array_equal(weights, replayed(version))


SOME = [
    ("log", "known", "write", KILL, 5),
    ("log", "known", "sync", EIO, 7),
    ("log", "known", "link", EIO, 1),
    ("log", "known", "reserve", ENOSPC, 1),
    ("snapshot", "known", "rename", KILL, 4),
    ("snapshot", "new", "folder", KILL, 2),
]
"""For every run of the tests."""


@pytest.mark.slow
@pytest.mark.parametrize(("level", "begin", "kind", "what", "number"), SOME)
def test_2_a_fault_of_the_disk_loses_and_repeats_nothing(tmp_path, level, begin, kind, what, number):
    skip_unless_traceable()
    assert fail_once(tmp_path, level, begin, kind, what, number).failed, "there is no such call any more"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["write", "sync"])
def test_9_a_call_that_a_signal_interrupts_is_made_again(tmp_path, kind):
    """Each second one. strace cannot cut a write short; tests/server/durability/test_writes.py does."""
    skip_unless_traceable()
    assert fail_once(tmp_path, "log", "known", kind, EINTR, "1+2").failed


@pytest.mark.soak
@pytest.mark.parametrize("what", [KILL, EIO, ENOSPC])
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("level", LEVELS)
def test_2_every_fault_of_the_disk_loses_and_repeats_nothing(tmp_path, level, kind, what):
    """strace counts each thread's calls, so a call may hide behind an earlier one of another thread: those are told."""
    skip_unless_traceable()
    seen, failed = set(), set()
    for begin, most in (("new", BEFORE_JOBS), ("known", 1000)):
        for number in range(1, most + 1):
            outcome = fail_once(tmp_path, level, begin, kind, what, number)
            seen.update(outcome.seen)
            failed.update(outcome.failed)
            if not outcome.happened:
                break
    print(f"{level} {kind} {what}: failed {len(failed)} calls, and not {sorted(seen - failed)}")
    assert failed or not seen
