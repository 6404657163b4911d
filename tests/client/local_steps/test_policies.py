"""Local steps under the policies of a job: a worker that is slow or lost costs the others nothing."""

import logging
import threading

import numpy as np
import pytest

import optd

OPTIONS = {"every": 3, "outer": {"algorithm": "sgd", "lr": 1.0}}


class Worker:
    """A worker whose local steps each add `pace` to its weights."""

    def __init__(self, server, job: str, name: str, pace: float, policy=None, **options) -> None:
        self.session = optd.connect(server.address, job=job, worker=name, policy=policy)
        self.weights = {key: np.zeros(2) for key in "ab"}
        self.local = optd.LocalSteps(self.weights, session=self.session, **{**OPTIONS, **options})
        self.pace = pace

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for key in self.weights:
                self.weights[key] += self.pace
            self.local.step()

    def in_background(self, count: int = 1) -> threading.Thread:
        thread = threading.Thread(target=self.step, args=(count,))
        thread.start()
        return thread


def close(*workers: Worker) -> None:
    for each in workers:
        each.session.close()


@pytest.mark.parametrize("fragments", [1, 2])
def test_with_a_quorum_a_lost_worker_costs_nothing_and_a_late_one_its_own_steps(server, name, caplog, fragments):
    policy = optd.Sync(workers=3, quorum=2)
    workers = [
        Worker(server, name, f"w{i}", pace, policy, every=4, fragments=fragments) for i, pace in enumerate((1, 2, 4))
    ]
    for _ in range(2):  # two cycles without the third worker
        threads = [each.in_background(4) for each in workers[:2]]
        for thread in threads:
            thread.join(60)
    assert [each.local.version for each in workers] == [2 * fragments, 2 * fragments, 0]
    late = workers[2]
    with caplog.at_level(logging.WARNING, "optd"):
        late.step(4 // fragments)
    assert (
        f"worker w2 has computed in {4 // fragments} local steps is lost (the next step has been made without"
        in caplog.text
    )
    found = late.session.pull()
    for key in late.local.fragments[0]:
        assert list(late.weights[key]) == list(found[key])
        assert found[key][0] == 2 * 4 * 1.5 if fragments == 1 else found[key][0] > 0, "the mean of the others"
    close(*workers)


def test_a_difference_that_is_too_stale_is_lost_and_its_worker_goes_on(server, name, caplog):
    first = Worker(server, name, "w0", 1, optd.Async(max_staleness=1))
    other = Worker(server, name, "w1", 10)
    other.step(6)
    first.step(2)
    with caplog.at_level(logging.WARNING, "optd"):
        first.step()
    assert "is lost (its staleness is 2, and the policy allows 1)" in caplog.text
    assert list(first.weights["a"]) == [60, 60]
    first.step(3)
    assert list(first.weights["a"]) == [63, 63]
    close(first, other)


def test_a_stale_difference_is_scaled_by_its_staleness(server, name):
    first = Worker(server, name, "w0", 1, optd.Async(staleness="inverse"))
    other = Worker(server, name, "w1", 10)
    other.step(3)
    first.step(3)
    assert list(first.weights["a"]) == [31.5, 31.5]
    assert first.local.last.staleness == 1
    close(first, other)


def test_staleness_is_that_of_the_fragment(server, name):
    """Steps of other fragments do not make a difference stale."""
    options = {"every": 2, "fragments": 2}
    first = Worker(server, name, "w0", 1, optd.Async(max_staleness=0), **options)
    for _ in range(6):
        first.step()
        assert first.local.last.staleness == 0
    assert first.session.info().version.version == 6
    other = Worker(server, name, "w1", 1, **options)
    first.step()  # of fragment 1
    other.step()
    assert other.local.last.dropped == "its staleness is 1, and the policy allows 0", "fragment 1 is stale"
    other.step()
    assert other.local.last.staleness == 0, "fragment 2 is not"
    close(first, other)


def test_workers_may_come_and_go(server, name):
    policy = optd.Sync(workers="live")
    first = Worker(server, name, "w0", 1, policy)
    first.step(3)
    second = Worker(server, name, "w1", 3)
    assert list(second.weights["a"]) == [3, 3]
    threads = [each.in_background(3) for each in (first, second)]
    for thread in threads:
        thread.join(60)
    assert list(first.weights["a"]) == list(second.weights["a"]) == [9, 9]
    close(second)
    first.step(3)
    assert list(first.weights["a"]) == [12, 12]
    close(first)


def test_local_steps_go_on_while_a_transfer_waits(server, name):
    options = {"every": 4, "delay": 3, "alpha": 0.0}
    first = Worker(server, name, "w0", 1, optd.Sync(workers=2), **options)
    second = Worker(server, name, "w1", 3, **options)
    first.step(6)  # its difference waits for that of the other worker since the fourth step
    assert list(first.weights["a"]) == [6, 6]
    assert first.local.version == 0
    second.step(7)
    first.step()
    assert list(first.weights["a"]) == list(second.weights["a"]) == [8, 8]
    assert first.local.version == second.local.version == 1
    close(first, second)


def test_an_error_in_the_block_does_not_wait_for_what_is_under_way(server, name):
    """The other worker of the round never comes."""
    weights = {"w": np.zeros(2)}
    session = optd.connect(server.address, job=name, policy=optd.Sync(workers=2))
    with (
        pytest.raises(ZeroDivisionError),
        session,
        optd.LocalSteps(weights, every=2, delay=1, session=session) as local,
    ):
        local.step()
        local.step()
        raise ZeroDivisionError
    assert not session.is_open
