"""Long variants: the same promises, over and over, while workers are killed at moments that nobody chose."""

import random

import numpy as np
import pytest
from faults.processes import wait_for, worker

import optd
from optd.local import LocalServer

pytestmark = pytest.mark.soak
KILLS = 150


@pytest.mark.timeout(1800)
def test_every_push_counts_once_or_never_while_workers_are_killed(server: LocalServer, name: str):
    """With SGD, lr 1 and gradients of 1, the weights are minus the version; a push lost or doubled would show."""
    chance = random.Random(0)
    acknowledged = 0
    with optd.connect(server.address, job=name) as watcher:
        for round_number in range(KILLS):
            with worker(server.address, name, f"w{round_number % 3}") as victim:
                for _ in range(chance.randrange(5)):
                    acknowledged = victim.ask("step", gradient=1.0)["version"]
                for _ in range(chance.randrange(4)):
                    victim.tell("step", gradient=1.0)
                victim.process.kill()
            weights = watcher.pull()["param0"]
            version = watcher.info().version.version
            # The server may still be taking in what the victim sent, but never half of it.
            assert (weights == weights[0]).all()
            assert acknowledged <= -weights[0] <= version
        wait_for(
            lambda: bool((watcher.pull()["param0"] == -np.float32(watcher.info().version.version)).all()),
            "weights that are minus the version",
        )
