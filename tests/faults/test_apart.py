"""Workers that start apart, or with weights of their own: there is one job, and nobody overwrites it."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest
from contract.plain import Plain
from faults.processes import SECONDS, in_background, worker

import optd
from optd.local import LocalServer

pytestmark = pytest.mark.slow

WORKERS = 6


def open_with(stack: ExitStack, address: str, job: str, name: str, value: float, lane: str = "grpc") -> optd.Optimizer:
    session = stack.enter_context(optd.connect(address, job=job, worker=name, timeout=20, lane=lane))
    return optd.SGD({"w": np.full(4, value, "f4")}, lr=1.0, session=session)


def test_workers_that_start_at_the_same_moment_share_the_weights_of_one_of_them(server: LocalServer, name: str):
    start = threading.Barrier(WORKERS)
    with ExitStack() as stack:

        def join(number: int) -> optd.Optimizer:
            start.wait(SECONDS)
            return open_with(stack, server.address, name, f"w{number}", float(number + 1))

        joining = [in_background(lambda number=number: join(number)) for number in range(WORKERS)]
        opened = [each.result(SECONDS) for each in joining]
        starts = {tuple(optimizer.params["w"].tolist()) for optimizer in opened}
        assert len(starts) == 1, "all begin with the same weights"
        (begun,) = starts
        assert begun in {(float(number + 1),) * 4 for number in range(WORKERS)}
        for optimizer in opened:
            optimizer.step({"w": np.ones(4, "f4")})
        assert opened[-1].version == WORKERS
        assert opened[-1].params["w"].tolist() == [begun[0] - WORKERS] * 4


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_a_worker_with_fresh_weights_takes_those_of_the_running_job(
    server: LocalServer, plain: Plain, name: str, lane: str
):
    with ExitStack() as stack:
        first = open_with(stack, server.address, name, "first", 0.0, lane)
        for _ in range(3):
            first.step({"w": np.ones(4, "f4")})
        fresh = open_with(stack, server.address, name, "fresh", 100.0, lane)
        assert fresh.params["w"].tolist() == [-3.0] * 4
        assert plain.weights(name)["w"].tolist() == [-3.0] * 4
        assert plain.info(name).version.version == 3
        fresh.step({"w": np.ones(4, "f4")})
        first.step({"w": np.ones(4, "f4")})
        assert plain.weights(name)["w"].tolist() == [-5.0] * 4


def test_a_restarted_worker_goes_on_with_the_weights_of_the_job(server: LocalServer, plain: Plain, name: str):
    with worker(server.address, name, "w") as first:
        assert first.ask("step", gradient=1)["weights"] == [-1.0] * 4
        epoch = plain.list_workers(name)["w"].epoch
        with worker(server.address, name, "w") as again:
            outcome = again.ask("step", gradient=1)
            assert outcome["weights"] == [-2.0] * 4
            assert outcome["epoch"] > epoch
            assert first.ask("step", gradient=100)["error"] == "StaleEpoch"
            assert again.ask("step", gradient=1)["weights"] == [-3.0] * 4
