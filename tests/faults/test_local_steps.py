"""Local steps over a server that is killed and a network that loses answers: nothing is lost, nothing counts twice."""

import threading

import pytest
from faults.processes import wait_for
from faults.proxy import Proxy
from tests.client.local_steps.problem import Inner, assert_equal, initial, together
from tests.client.local_steps.simulation import ROUNDS, diloco, streaming
from tests.faults.durable import Durable, free_port

import optd
from optd.local import local

pytestmark = pytest.mark.slow

COMMIT = ("--durability", "log", "--fsync", "commit")
NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def register(address: str, job: str, workers: int) -> None:
    with optd.connect(address, job=job, worker="first", policy=optd.Sync(workers=workers)) as session:
        optd.SGD(initial(), **NESTEROV, session=session)


def test_16_a_server_that_is_killed_amid_local_steps_changes_no_number(tmp_path):
    """Killed while two workers compute, and while one of them waits for its round."""
    every, weights = 4, [initial(), initial()]
    with Durable(tmp_path, *COMMIT) as server:
        register(server.address, "job", 2)
        meet = threading.Barrier(2, action=server.restart)

        def work(number: int) -> None:
            inner = Inner(number)
            session = optd.connect(server.address, job="job", worker=f"w{number}")
            with session, optd.LocalSteps(weights[number], every=every, session=session) as local:
                for step in range(ROUNDS * every):
                    inner.step(weights[number])
                    # Amid the second cycle for both; the third time one of them waits in its round already.
                    if step == every + 1 or (step == 2 * every + 3 and number == 1):
                        meet.wait(60) if step == every + 1 else server.restart()
                    local.step()

        together([lambda number=number: work(number) for number in range(2)])
        with optd.connect(server.address, job="job") as session:
            found = session.pull()
    theta, _ = diloco(2, every)
    assert_equal(found, theta)
    for each in weights:
        assert_equal(each, theta)


@pytest.mark.parametrize(("fragments", "delay"), [(1, 0), (3, 0), (3, 2)])
def test_13_lost_answers_count_a_difference_once(server, name, fragments, delay):
    """Each sync of one of the workers loses an answer, of its push or of its pull."""
    every, alpha = 6, 0.5 if delay else 0.0
    options = {"every": every, "fragments": fragments, "delay": delay, "alpha": alpha}
    weights, names = [initial(), initial()], []
    register(server.address, name, 2)
    with Proxy(server.address) as proxy:

        def work(number: int) -> None:
            inner = Inner(number)
            address = proxy.address if number == 0 else server.address
            session = optd.connect(address, job=name, worker=f"w{number}", lane="grpc")
            with session, optd.LocalSteps(weights[number], session=session, **options) as local:
                names.append(local.fragments)
                for step in range(ROUNDS * every):
                    inner.step(weights[number])
                    if number == 0 and step % 2 == 1:
                        proxy.lose_answers()
                    local.step()

        together([lambda number=number: work(number) for number in range(2)])
        assert proxy.cuts >= ROUNDS
    with optd.connect(server.address, job=name) as session:
        found = session.pull()
    theta, expected = streaming(2, every, names[0], delay, alpha)
    assert_equal(found, theta)
    for one, other in zip(weights, expected, strict=True):
        assert_equal(one, other)


def test_a_job_that_is_created_anew_begins_with_the_base_and_no_local_step_is_lost():
    """The server keeps nothing and is started again amid a cycle."""
    port, steps, weights, inner = str(free_port()), 8, initial(), Inner(0)
    server = local("--port", port)
    try:
        session = optd.connect(server.address, job="job", worker="w0", recreate=True)
        with (
            session,
            optd.LocalSteps(weights, every=3, outer={"algorithm": "sgd", "lr": 1.0}, session=session) as steps_,
        ):
            for step in range(steps):
                inner.step(weights)
                if step == 4:
                    server.process.kill()
                    server.stop()
                    server = local("--port", port)
                steps_.step()
            steps_.sync()
            found, version = session.pull(), session.info().version.version
    finally:
        server.stop()
    alone, inner = initial(), Inner(0)
    for _ in range(steps):
        inner.step(alone)
    assert version == 2, "of the new job"
    assert_equal(weights, alone)
    assert_equal(found, alone)


@pytest.mark.parametrize(("fragments", "delay"), [(1, 0), (3, 2)])
def test_18_a_lease_that_runs_out_between_two_syncs_changes_no_number(name, fragments, delay):
    """The difference stays one to the weights that it was computed from, and is sent under the new epoch."""
    every, alpha = 6, 0.5 if delay else 0.0
    options = {"every": every, "fragments": fragments, "delay": delay, "alpha": alpha}
    weights, epochs, names = [initial(), initial()], [], []
    with local("--lease-seconds", "0.6") as server:
        register(server.address, name, 2)

        def work(number: int) -> None:
            inner = Inner(number)
            session = optd.connect(server.address, job=name, worker=f"w{number}")
            with session, optd.LocalSteps(weights[number], session=session, **options) as local_steps:
                names.append(local_steps.fragments)
                for step in range(ROUNDS * every):
                    inner.step(weights[number])
                    if number == 1 and step == 2 * every - 2:
                        session._heartbeat.stop()  # as if the process had been stopped
                        wait_for(lambda: "w1" not in active(session), "the lease of w1 runs out")
                    local_steps.step()
                epochs.append(session.epoch)

        together([lambda number=number: work(number) for number in range(2)])
        with optd.connect(server.address, job=name) as session:
            found = session.pull()
    assert_equal(found, streaming(2, every, names[0], delay, alpha)[0])
    assert sorted(epochs) == [1, 2]


def active(session: optd.Session) -> set[str]:
    return {info.name for info in session.workers() if info.active}
