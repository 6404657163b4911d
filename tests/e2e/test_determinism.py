"""A sync job gives the same bits for the same pushes, whatever else differs.

Each algorithm trains in the same rounds on servers with other kernels and other numbers of threads, with other orders
of arrival, and with workers on other lanes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations

import numpy as np
import pytest
from faults.processes import in_background, wait_for

import optd
from optd.local import LocalServer, local
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.iterative import Iterative

pytestmark = pytest.mark.slow

SETTINGS = [("numpy", 1), ("numpy", 2), ("numba", 1), ("numba", 2)]
"""Kernels and threads of each server."""
LANES = [("grpc", "grpc", "grpc"), ("shm", "shm", "shm"), ("grpc", "shm", "grpc"), ("shm", "grpc", "shm")]
"""The lanes of the workers, by server."""
WORKERS = ("a", "b", "c")
SHAPE = (200, 200)
"""More elements than one thread takes alone."""
ROUNDS = 3
OPTIONS: dict[str, dict[str, object]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"amsgrad": True, "weight_decay": 0.01},
    "rmsprop": {"momentum": 0.9, "centered": True},
    "lbfgs": {"max_iter": 2},
}
NAMES = [name for name, each in ALGORITHMS.items() if not each.takes_values]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[LocalServer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(local("--kernels", kernels, "--threads", str(threads))) for kernels, threads in SETTINGS
        ]


def gradient(name: str, worker: str, number: int):
    rng = np.random.default_rng(WORKERS.index(worker) * 100 + number)
    values = (rng.standard_normal(SHAPE) * 10.0 ** rng.integers(-6, 3, SHAPE)).astype("f4")
    if name != "sparse_adam":
        return {"w": values}
    ids = rng.integers(0, SHAPE[0], 60)
    return {"w": (ids, values[:60])}


def trained(server: LocalServer, name: str, job: str, lanes: tuple[str, ...], orders: list[tuple[str, ...]]) -> bytes:
    with ExitStack() as stack:
        opened = {}
        for worker, lane in zip(WORKERS, lanes, strict=True):
            session = stack.enter_context(
                optd.connect(server.address, job=job, worker=worker, policy=optd.Sync(3), lane=lane, timeout=60)
            )
            params = {"w": np.linspace(-1, 1, SHAPE[0] * SHAPE[1], dtype="f4").reshape(SHAPE)}
            opened[worker] = optd.Optimizer(name, params, session=session, **OPTIONS.get(name, {}))
        for number, order in enumerate(orders):
            waiting = []
            for worker in order:
                step = opened[worker].step
                given = gradient(name, worker, number)
                if isinstance(ALGORITHMS[name], Iterative):
                    params = opened[worker].params
                    waiting.append(in_background(lambda step=step, params=params: step(lambda: evaluated(params))))
                    continue
                weight = 1.0 + WORKERS.index(worker)
                waiting.append(in_background(lambda step=step, given=given, weight=weight: step(given, weight=weight)))
                if len(waiting) < len(WORKERS):
                    wait_for(lambda worker=worker: is_in(opened[worker].session, worker), f"{worker} is in the round")
            for each in waiting:
                each.result(60)
        return opened["a"].session.pull()["w"].tobytes()


def evaluated(params) -> tuple[float, dict[str, np.ndarray]]:
    weights = params["w"]
    return float((weights.astype("f8") ** 2).sum() / 2), {"w": weights.copy()}


def is_in(session: optd.Session, worker: str) -> bool:
    return any(info.name == worker and info.waiting for info in session.workers())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_pushes_give_the_same_bits(servers, name):
    everyone = list(permutations(WORKERS))
    found = set()
    for index, (server, lanes) in enumerate(zip(servers, LANES, strict=True)):
        orders = [everyone[(index * 2 + number) % len(everyone)] for number in range(ROUNDS)]
        found.add(trained(server, name, f"{name}-{index}", lanes, orders))
    assert len(found) == 1
