"""A model whose forward pass tells which version its weights are of, and a training that makes such versions."""

import time

import numpy as np
import pytest
import torch

import optd
from optd.session.session import Session

NAMES = ("first", "second.weight", "second.bias")


class Telling(torch.nn.Module):
    """Returns the version that all of its weights are of; raises if they are of several."""

    def __init__(self, dtype: torch.dtype = torch.float32, seconds: float = 0.0) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.full((5,), -1.0, dtype=dtype))
        self.second = torch.nn.Linear(3, 2, dtype=dtype)
        self.seconds = seconds

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        before = self.first.detach().clone()
        if self.seconds:
            time.sleep(self.seconds)
        seen = torch.cat([before, *(each.detach().reshape(-1) for each in self.parameters())]).float()
        if not bool((seen == seen[0]).all()):
            raise AssertionError(f"a pass saw {sorted(set(seen.tolist()))}")
        return seen[0]


class Trainer:
    """Its weights at version n are n."""

    def __init__(self, session: Session, names=NAMES, dtype="f4") -> None:
        shapes = [(5,), (2, 3), (2,)]
        self.weights = {name: np.zeros(shape, dtype) for name, shape in zip(names, shapes, strict=True)}
        self.gradient = {name: np.full(shape, -1.0, dtype) for name, shape in zip(names, shapes, strict=True)}
        self.optimizer = optd.SGD(self.weights, lr=1.0, session=session)

    def steps(self, count: int = 1) -> None:
        for _ in range(count):
            self.optimizer.step(self.gradient)


NOTHING = torch.zeros(1)


@pytest.fixture
def where(server, job_names):
    return {"server": server.address, "job": next(job_names)}


@pytest.fixture
def trainer(where):
    with optd.connect(where["server"], job=where["job"], worker="trainer", timeout=30.0) as session:
        yield Trainer(session)
