"""Rounds of workers that die, and pushes that come again after their server has died."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refused
from faults.durable import Durable
from faults.processes import SECONDS, in_background, wait_for, worker

import optd
from optd import errors
from optd.local import LocalServer, local
from optd_wire.v1 import training_service_pb2

LEASE = 0.6


@pytest.fixture(scope="module")
def strict() -> Iterator[LocalServer]:
    """A server with short leases."""
    with local("--lease-seconds", str(LEASE)) as running:
        yield running


@pytest.fixture
def opened(strict: LocalServer, name: str):
    """Opens optimizers of one job, by worker: SGD with a rate of 1 on four zeros."""
    with ExitStack() as stack:

        def open_one(worker: str, policy: object = None) -> optd.Optimizer:
            session = stack.enter_context(
                optd.connect(strict.address, job=name, worker=worker, policy=policy, timeout=20)
            )
            return optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session)

        yield open_one


def gradient(value: float) -> list[np.ndarray]:
    return [np.full(4, value, "f4")]


def waits(optimizer: optd.Optimizer, worker: str) -> bool:
    return any(info.name == worker and info.waiting for info in optimizer.session.workers())


def active(optimizer: optd.Optimizer) -> set[str]:
    return {info.name for info in optimizer.session.workers() if info.active}


# A worker dies


@pytest.mark.slow
def test_21_a_round_waits_for_a_worker_that_takes_the_place_of_a_dead_one(strict, opened, name):
    a = opened("a", optd.Sync(2))
    with worker(strict.address, name, "b") as dead:
        stepping = in_background(lambda: a.step(gradient(1.0)))
        wait_for(lambda: waits(a, "a"), "a waits")
        dead.signal(signal.SIGKILL)
        wait_for(lambda: active(a) == {"a"}, "the lease of b runs out")
        assert waits(a, "a")
    with worker(strict.address, name, "b") as again:
        assert again.ask("step", gradient=3)["weights"] == [-2.0] * 4
    assert stepping.result(SECONDS).pushes == 2


@pytest.mark.slow
def test_21_a_round_goes_on_without_a_dead_worker(strict, opened, name):
    a = opened("a", optd.Sync(2, on_death="continue"))
    with worker(strict.address, name, "b") as dead:
        dead.tell("step", gradient=1)
        a.step(gradient(1.0))
        dead.outcome()
        stepping = in_background(lambda: a.step(gradient(1.0)))
        wait_for(lambda: waits(a, "a"), "a waits")
        dead.signal(signal.SIGKILL)
        assert stepping.result(SECONDS).pushes == 1
        assert a.step(gradient(1.0)).pushes == 1, "nor do the next ones wait"
    with worker(strict.address, name, "b") as again:
        again.tell("step", gradient=1)
        assert a.step(gradient(1.0)).pushes == 2, "who comes back takes part again"


def test_21_a_round_fails_with_a_dead_worker(strict, opened, name):
    a = opened("a", optd.Sync(2, on_death="fail"))
    with worker(strict.address, name, "b") as dead:
        stepping = in_background(lambda: a.step(gradient(1.0)))
        wait_for(lambda: waits(a, "a"), "a waits")
        dead.signal(signal.SIGKILL)
        with pytest.raises(errors.WorkerLost, match="because worker 'b' was lost: its lease ran out"):
            stepping.result(SECONDS)
    assert a.session.pull()["param0"].tolist() == [0.0] * 4


def test_21_a_quorum_needs_nobody_who_is_dead(strict, opened, name):
    a, c = opened("a", optd.Sync(3, quorum=2, grace=60.0)), opened("c")
    with worker(strict.address, name, "b") as dead:
        dead.tell("step", gradient=1)
        both = [in_background(lambda each=each: each.step(gradient(1.0))) for each in (a, c)]
        for each in both:
            assert each.result(SECONDS).pushes == 3
        dead.outcome()
        dead.signal(signal.SIGKILL)
        both = [in_background(lambda each=each: each.step(gradient(1.0))) for each in (a, c)]
        for each in both:
            assert each.result(SECONDS).pushes == 2, "the window of a minute ends with the lease of b"


def test_21_one_that_is_killed_in_mid_upload_costs_the_others_nothing(strict, name):
    """The round of the others goes on from what they have sent: none of them sends anything again."""
    with Plain(strict.address) as plain:
        plain.create(
            job_spec(name, [group("g", {"w": ((1024,), "float32")})], workers=2, lr=1.0), [frame(np.zeros(1024, "f4"))]
        )
        epochs = {each: plain.join(name, each) for each in ("a", "b")}
        sent = threading.Event()

        def half() -> Iterator[training_service_pb2.PushRequest]:
            yield training_service_pb2.PushRequest(
                header=header(name, "b", epochs["b"], 1), frames=[frame(np.ones(512, "f4"))]
            )
            sent.wait(SECONDS)

        with Plain(strict.address) as doomed:
            whole = in_background(
                lambda: plain.push(header(name, "a", epochs["a"], 1), [frame(np.ones(1024, "f4"))], timeout=SECONDS)
            )
            upload = doomed.training.Push.future(half(), timeout=SECONDS)
            wait_for(lambda: plain.list_workers(name)["b"].waiting, "half a gradient is there")
            upload.cancel()
            sent.set()
        wait_for(lambda: not plain.list_workers(name)["b"].waiting, "the half is gone")
        plain.push(header(name, "b", epochs["b"], 1), [frame(np.full(1024, 3, "f4"))])
        assert not whole.result(SECONDS).repeat
        assert (plain.weights(name)["w"] == -2).all()


# The server dies


@pytest.mark.slow
def test_15_another_content_under_an_applied_number_is_refused_also_after_a_restart(tmp_path: Path, name: str):
    with Durable(tmp_path, "--durability", "log", "--fsync", "commit") as server:
        with Plain(server.address) as plain:
            plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
            epoch = plain.join(name, "w")
            first = plain.push(header(name, "w", epoch, 1), [frame(np.ones(4, "f4"))])
        for _ in range(2):
            with Plain(server.address) as plain:
                with refused("OTHER_PAYLOAD", "sequence 1 again, but with another content"):
                    plain.push(header(name, "w", epoch, 1), [frame(np.full(4, 2, "f4"))])
                with refused("OTHER_PAYLOAD"):
                    plain.push(header(name, "w", epoch, 1, weight=3.0), [frame(np.ones(4, "f4"))])
                again = plain.push(header(name, "w", epoch, 1), [frame(np.ones(4, "f4"))])
                assert (again.repeat, again.applied_version) == (True, first.applied_version)
                assert (plain.weights(name)["w"] == -1).all()
            server.restart()


@pytest.mark.slow
def test_17_a_gap_is_refused_with_both_numbers_also_after_a_restart(tmp_path: Path, name: str):
    with Durable(tmp_path, "--durability", "log", "--fsync", "commit") as server:
        with Plain(server.address) as plain:
            plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
            epoch = plain.join(name, "w")
            for sequence in (1, 2):
                plain.push(header(name, "w", epoch, sequence), [frame(np.ones(4, "f4"))])
        server.restart()
        with Plain(server.address) as plain:
            for wrong in (1, 4, 9):
                with refused("SEQUENCE_GAP", f"pushes sequence {wrong}; its last one was 2, so the next is 3"):
                    plain.push(header(name, "w", epoch, wrong), [frame(np.ones(4, "f4"))])
            assert (plain.weights(name)["w"] == -2).all()


@pytest.mark.slow
def test_16_a_push_that_is_repeated_after_a_restart_counts_once(tmp_path):
    with Durable(tmp_path, "--durability", "log", "--fsync", "commit") as server:
        weights = np.zeros(4, np.float32)
        session = optd.connect(server.address, job="j", worker="w", timeout=30)
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        before = optimizer._registration._base
        optimizer.step({"w": np.ones(4, np.float32)})
        server.restart()
        # As if the answer had not arrived.
        session._sequence -= 1
        optimizer._registration._base = before
        optimizer.step({"w": np.ones(4, np.float32)})
        assert server_version(server) == 1
        optimizer.step({"w": np.ones(4, np.float32)})
        assert server_version(server) == 2
        assert np.array_equal(weights, np.full(4, -2, np.float32))
        session.close()


def server_version(server: Durable) -> int:
    with Plain(server.address) as plain:
        version: int = plain.info("j").version.version
    return version
