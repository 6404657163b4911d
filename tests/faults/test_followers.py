"""A followed model while its server is killed and while its job goes back: every pass is of one version."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.plain import Plain
from faults.durable import Durable
from faults.processes import in_background, wait_for

import optd
from optd.session.session import Session
from optd.torch import Follower
from optd_wire.v1 import checkpoint_service_pb2

pytestmark = pytest.mark.slow

SECONDS = 40.0
SIZE = 20_000


class Model(torch.nn.Module):
    """Two parameters whose numbers are all the version of the job."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(SIZE))
        self.last = torch.nn.Parameter(torch.zeros(SIZE))

    def forward(self) -> float:
        versions = torch.stack([each.detach().aminmax()[place] for each in self.parameters() for place in (0, 1)])
        assert bool((versions == versions[0]).all()), f"a pass saw {versions.tolist()}"
        return versions[0].item()


class Trainer:
    """Its weights at version n are n."""

    def __init__(self, session: Session) -> None:
        names = ("first", "last")
        self.optimizer = optd.SGD({name: np.zeros(SIZE, "f4") for name in names}, lr=1.0, session=session)
        self.gradient = {name: np.full(SIZE, -1.0, "f4") for name in names}

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.step(self.gradient)


def test_a_follower_goes_on_after_kills(tmp_path: Path, name: str):
    stop = threading.Event()
    model = Model()

    def train() -> int:
        with optd.connect(server.address, job=name, worker="w", timeout=SECONDS) as session:
            trainer = Trainer(session)
            registered.set()
            while not stop.is_set():
                trainer.steps(1)
            return trainer.optimizer.version

    registered = threading.Event()
    with Durable(tmp_path / "data", "--durability", "log", "--fsync", "commit") as server:
        training = in_background(train)
        assert registered.wait(SECONDS)
        with Follower(model, server=server.address, job=name, timeout=SECONDS) as follower:
            for _ in range(2):
                before = follower.version
                wait_for(lambda before=before: model() > before + 3, "new versions in the model", SECONDS)
                server.restart()
            before = follower.version
            wait_for(lambda before=before: model() > before + 3, "new versions after the last kill", SECONDS)
            stop.set()
            last = training.result(SECONDS)
            assert follower.wait(last) == model() == last
            assert follower.failure is None


def test_a_follower_goes_back_with_its_job(tmp_path: Path, name: str):
    model = Model()
    with (
        Durable(tmp_path / "data", "--durability", "log", "--snapshot-versions", "1") as server,
        optd.connect(server.address, job=name, worker="w", timeout=SECONDS) as session,
        Plain(server.address) as plain,
    ):
        trainer = Trainer(session)
        trainer.steps(1)
        request = checkpoint_service_pb2.ListSnapshotsRequest(job=name)
        wait_for(lambda: any(s.version for s in plain.checkpoints.ListSnapshots(request).snapshots), "a snapshot")
        kept = max(each.version for each in plain.checkpoints.ListSnapshots(request).snapshots)
        trainer.steps(5)
        with Follower(model, server=server.address, job=name, timeout=SECONDS) as follower:
            assert model() == 6
            plain.checkpoints.RollBackJob(checkpoint_service_pb2.RollBackJobRequest(job=name, version=kept))
            wait_for(lambda: model() == kept, "the older version", SECONDS)
            assert (follower.version, follower.failure) == (kept, None)
