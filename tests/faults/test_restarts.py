"""A server that keeps every event is killed in mid-training: no worker needs code for that, and no bit differs."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack

import numpy as np
import pytest
from tests.faults.durable import Durable
from tests.faults.processes import in_background, wait_for
from tests.faults.trainings import TRAININGS, opener, slope, start

import optd

pytestmark = pytest.mark.slow

COMMIT = ("--durability", "log", "--fsync", "commit", "--snapshot-seconds", "0.5")
KILLS = 3
TIMEOUT = 60.0


class Pace:
    """The numbers of steps until `stop` is set. All workers of a training get the same."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._decided: list[bool] = []
        self._lock = threading.Lock()

    @property
    def steps(self) -> int:
        return sum(self._decided)

    def __iter__(self) -> Iterator[int]:
        number = 0
        while self._goes_on(number):
            yield number
            number += 1

    def _goes_on(self, number: int) -> bool:
        with self._lock:
            if number == len(self._decided):
                self._decided.append(not self._stop.is_set())
            return self._decided[number]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, tuple[int, "Future[list[np.ndarray]]"]]:
    """Of each training, amid which the server was killed: how many steps it took, and its result."""
    stop = threading.Event()
    paces = {name: Pace(stop) for name in TRAININGS}
    running: dict[str, Future[list[np.ndarray]]] = {}
    rng = np.random.default_rng(5)
    with Durable(tmp_path_factory.mktemp("killed"), *COMMIT) as server:
        for name, (train, lane) in TRAININGS.items():
            open_session = opener(server.address, name, lane=lane)
            running[name] = in_background(lambda t=train, o=open_session, p=paces[name]: t(o, p))
        for _ in range(KILLS):
            before = {name: pace.steps for name, pace in paces.items()}
            wait_for(
                lambda before=before: all(
                    paces[name].steps > before[name] + 2 or each.done() for name, each in running.items()
                ),
                "steps of every training",
                TIMEOUT,
            )
            time.sleep(float(rng.uniform(0, 0.1)))  # an instant that has nothing to do with what the server does
            server.restart()
        stop.set()
        wait_for(lambda: all(each.done() for each in running.values()), "the end of every training", TIMEOUT)
    return {name: (paces[name].steps, each) for name, each in running.items()}


@pytest.fixture(scope="module")
def calm() -> Iterator[str]:
    """A server that nobody kills."""
    with optd.local() as server:
        yield server.address


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_through_kills_gives_the_same_bits_as_one_without(killed, calm, name):
    train, lane = TRAININGS[name]
    steps, result = killed[name]
    arrays = result.result(0)
    assert steps > 2 * KILLS
    for mine, theirs in zip(arrays, train(opener(calm, name, lane=lane), range(steps)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_16_a_push_that_waits_for_its_round_when_the_server_is_killed_is_part_of_it(tmp_path):
    policy = optd.Sync(workers=2)
    with Durable(tmp_path, *COMMIT) as server, ExitStack() as stack:
        waiting, others = {}, {}
        for lane in ("grpc", "shm"):
            opened = opener(server.address, lane, lane=lane, policy=policy)
            first, second = (stack.enter_context(opened(worker)) for worker in ("w0", "w1"))
            one = optd.SGD({"w": start()["w"]}, lr=1.0, session=first)
            others[lane] = optd.SGD({"w": start()["w"]}, lr=1.0, session=second)
            waiting[lane] = one, in_background(lambda one=one: one.step({"w": slope(start()["w"], 1)}))
        for _ in range(2):
            for lane, other in others.items():
                wait_for(lambda s=other.session: any(worker.waiting for worker in s.workers()), f"a push on {lane}")
            if server.starts == 1:
                server.restart()
        expected = start()["w"] - (slope(start()["w"], 1) + slope(start()["w"], 2)) / 2
        for lane, (one, step) in waiting.items():
            assert not step.done()
            others[lane].step({"w": slope(start()["w"], 2)})
            assert step.result(TIMEOUT).version.version == 1
            for optimizer in (one, others[lane]):
                np.testing.assert_array_equal(optimizer.weights["w"], expected)
