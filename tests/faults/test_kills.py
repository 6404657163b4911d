"""Fault 1: a server is killed at any instant; what was acknowledged is there, once, and the workers go on."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from tests.faults.durable import Durable
from tests.faults.processes import in_background, wait_for

import optd
from optd.local import LocalServer, local

SIZE = 300
COMMIT = ("--durability", "log", "--fsync", "commit", "--snapshot-seconds", "0.3", "--keep-snapshots", "2")


def gradient(worker: str, number: int, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng([number, *worker.encode()])
    return rng.normal(size=size).astype(np.float32)


def rate(number: int) -> float:
    """The learning rate changes every third step."""
    return 0.01 * (1 + number // 3 % 5)


def connect(server: Durable | LocalServer, job: str, worker: str, **more: Any) -> Any:
    return optd.connect(server.address, job=job, worker=worker, timeout=60, **more)


class Trainer:
    """A worker that steps until it is told to end, or has taken its steps."""

    def __init__(self, server: Durable | LocalServer, stop: threading.Event) -> None:
        self.server = server
        self.stop = stop
        self.steps = 0

    def solo(self) -> np.ndarray:
        """Adam in an asynchronous job, with options that change, and with groups that are added."""
        weights = {"w": np.ones(SIZE, np.float32)}
        with connect(self.server, "solo", "only") as session:
            optimizer = optd.Adam(weights, lr=rate(0), session=session)
            while self.steps < self.limit and not self.stop.is_set():
                if self.steps % 40 == 20:
                    number = len(optimizer.param_groups)
                    added = {f"more{number}": np.full(3, number, np.float32)}
                    optimizer.add_param_group({"params": added})
                    weights |= added
                for group in optimizer.param_groups:
                    group["lr"] = rate(self.steps)
                optimizer.step({name: gradient("only", self.steps, array.size) for name, array in weights.items()})
                self.steps += 1
            assert session.version == self.steps
        return np.concatenate(list(weights.values()))

    def pair(self, worker: str) -> np.ndarray:
        """One of two workers of a synchronous job."""
        weights = {"w": np.ones(SIZE, np.float32)}
        with connect(self.server, "pair", worker, policy=optd.Sync(workers=2)) as session:
            optimizer = optd.SGD(weights, lr=0.01, momentum=0.9, session=session)
            while self.steps < self.limit:
                optimizer.step({"w": gradient(worker, self.steps)})
                self.steps += 1
                if self.pace(self.steps):
                    break
        return weights["w"]

    limit = 1 << 30
    pace: Callable[[int], bool] = staticmethod(lambda _: False)


def without_kills(solo_steps: int, pair_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights after so many steps on a server that nobody kills."""
    with local() as calm:
        one, pair = Trainer(calm, threading.Event()), [Trainer(calm, threading.Event()) for _ in range(2)]
        one.limit, pair[0].limit, pair[1].limit = solo_steps, pair_steps, pair_steps
        other = in_background(lambda: pair[1].pair("p1"))
        weights = pair[0].pair("p0")
        assert np.array_equal(weights, other.result(60))
        return one.solo(), weights


def churn(server: Durable, stop: threading.Event) -> set[str]:
    """Creates jobs, steps in them, and deletes every other one; returns the names of those that are left."""
    left = set()
    number = 0
    while not stop.is_set():
        name = f"churn/{number}"
        weights = {"w": np.zeros(4, np.float32)}
        with connect(server, name, "w") as session:
            optimizer = optd.SGD(weights, lr=1.0, session=session)
            for _ in range(3):
                optimizer.step({"w": np.ones(4, np.float32)})
        assert np.array_equal(weights["w"], np.full(4, -3, np.float32)), name
        left.add(name)
        if number % 2:
            delete(server, name)
            left.discard(name)
        number += 1
    return left


def delete(server: Durable, name: str) -> None:
    """Deletes a job, and asks again while the answer is lost."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            optd.delete_job(name, server=server.address)
        except optd.errors.UnknownJob:
            return  # an earlier attempt has done it
        except optd.errors.Unavailable:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"{name} could not be deleted")


def kill_often(folder: Any, kills: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    stop, done = threading.Event(), threading.Event()
    agreed: dict[str, int] = {}
    with Durable(folder, *COMMIT) as server:
        solo, pairs = Trainer(server, stop), [Trainer(server, done), Trainer(server, done)]
        barrier = threading.Barrier(2, timeout=90)

        def pace(steps: int) -> bool:
            barrier.wait()  # so that both partners decide alike
            agreed.setdefault(str(steps), stop.is_set())
            return bool(agreed[str(steps)])

        for each in pairs:
            each.pace = pace
        running: dict[str, Future[Any]] = {
            "solo": in_background(solo.solo),
            "p0": in_background(lambda: pairs[0].pair("p0")),
            "p1": in_background(lambda: pairs[1].pair("p1")),
            "churn": in_background(lambda: churn(server, stop)),
        }
        for _ in range(kills):
            before = solo.steps
            wait_for(
                lambda before=before: solo.steps > before or any(each.done() for each in running.values()),
                "a step after the restart",
                60,
            )
            time.sleep(float(rng.uniform(0, 0.15)))  # an instant that has nothing to do with what the server does
            server.restart()
        stop.set()
        results = {name: future.result(90) for name, future in running.items()}
        steps = pairs[0].steps
        assert steps == pairs[1].steps and np.array_equal(results["p0"], results["p1"])
        lone, both = without_kills(solo.steps, steps)
        assert np.array_equal(results["solo"], lone)
        assert np.array_equal(results["p0"], both)
        # What the disk has is what the workers have seen.
        server.restart()
        jobs = {job.name: job for job in optd.jobs(server=server.address)}
        assert set(jobs) == {"solo", "pair"} | results["churn"]
        assert jobs["solo"].version.version == jobs["solo"].version.durable_version == solo.steps
        assert jobs["pair"].version.version == steps
        assert server.stop() == 0
        assert solo.steps > kills and steps > kills


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_1_a_server_that_is_killed_often_loses_nothing_and_repeats_nothing(tmp_path):
    kill_often(tmp_path / "data", kills=20, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_1_kills_many_times(tmp_path, seed):
    kill_often(tmp_path / "data", kills=20, seed=seed)
