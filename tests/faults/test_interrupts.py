"""Ctrl-C, at any moment: the call is broken off, the session goes on, and the program ends when it likes."""

import subprocess
import sys
from pathlib import Path

import pytest
from faults.processes import SECONDS

from optd.local import LocalServer

pytestmark = pytest.mark.slow

INTERRUPTED = """
import gc, os, random, signal, sys, threading
import numpy as np
import optd

address, job, lane, seed, elements = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
random.seed(seed)
gc.disable()  # Python drops an interrupt that comes in a callback of its collector, and the loop below would go on
signal.signal(signal.SIGINT, signal.default_int_handler)
weights, gradients = np.zeros(elements, np.float32), {"w": np.ones(elements, np.float32)}
with optd.connect(address, job=job, worker="w0", lane=lane, timeout=20) as session:
    optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
    interrupts = 0
    while interrupts < 80:
        timer = threading.Timer(random.uniform(0.001, 0.02), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                optimizer.step(gradients)
                optimizer.pull(only_if_newer=True)
        except KeyboardInterrupt:
            interrupts += 1
        timer.join()
    optimizer.step(gradients)
    versions = session.info().version.version
    print("steps", optimizer.version == versions, "weights", set(weights.tolist()) == {-float(versions)})
"""


@pytest.mark.parametrize(("lane", "elements"), [("grpc", 100), ("shm", 100), ("grpc", 500_000)])
def test_interrupts_of_steps_leave_a_session_that_goes_on(
    server: LocalServer, name: str, lane: str, elements: int, tmp_path: Path
) -> None:
    """Every push that was broken off counts once or never, and the next step brings the weights of the last version."""
    program = tmp_path / "interrupted.py"
    program.write_text(INTERRUPTED)
    command = [sys.executable, str(program), server.address, name, lane, "1", str(elements)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "steps True weights True\n"
