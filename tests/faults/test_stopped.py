"""Workers that are stopped for longer than their lease, and go on: nothing of theirs is lost or counts twice."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from contract.plain import Plain
from faults.processes import SECONDS, Worker, in_background, wait_for, worker

import optd
from optd.local import LocalServer, local

pytestmark = pytest.mark.slow

LEASE = 0.6


@pytest.fixture(scope="module")
def strict() -> Iterator[LocalServer]:
    """A server with short leases."""
    with local("--lease-seconds", str(LEASE)) as running:
        yield running


@pytest.fixture
def strict_plain(strict: LocalServer) -> Iterator[Plain]:
    with Plain(strict.address) as stubs:
        yield stubs


def is_active(plain: Plain, job: str, name: str) -> bool:
    return plain.list_workers(job)[name].active


def stop_past_its_lease(stopped: Worker, plain: Plain, job: str, name: str) -> None:
    stopped.signal(signal.SIGSTOP)
    wait_for(lambda: not is_active(plain, job, name), "its lease runs out")


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("call", ["step", "push", "pull"])
def test_18_a_worker_that_was_stopped_past_its_lease_goes_on(
    strict: LocalServer, strict_plain: Plain, name: str, call: str, lane: str
):
    plain = strict_plain
    with worker(strict.address, name, "sleeper", lane=lane) as sleeper:
        assert sleeper.ask("step", gradient=1)["version"] == 1
        stop_past_its_lease(sleeper, plain, name, "sleeper")
        sleeper.tell(call, gradient=2)
        sleeper.signal(signal.SIGCONT)
        outcome = sleeper.outcome()
        assert (outcome["epoch"], outcome["lane"]) == (2, lane)
        outcome = sleeper.ask("step", gradient=4)
        assert outcome["weights"] == [-5 if call == "pull" else -7] * 4
        assert plain.weights(name)["param0"].tolist() == outcome["weights"]
        assert plain.info(name).version.version == (2 if call == "pull" else 3)
        assert is_active(plain, name, "sleeper")


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_18_a_push_that_waited_for_its_round_when_its_worker_was_stopped_is_in_the_round(
    strict: LocalServer, strict_plain: Plain, name: str, lane: str
):
    """The end of the lease withdraws it; the worker joins again and sends it again."""
    plain = strict_plain
    with ExitStack() as stack:
        sleeper = stack.enter_context(worker(strict.address, name, "a", 2, lane=lane))
        other = stack.enter_context(worker(strict.address, name, "b", 2, lane=lane))
        for one, gradient in ((sleeper, 1), (other, 3)):
            one.tell("step", gradient=gradient)
        assert [one.outcome()["version"] for one in (sleeper, other)] == [1, 1]
        sleeper.tell("step", gradient=5)
        wait_for(lambda: plain.list_workers(name)["a"].waiting, "its push waits")
        stop_past_its_lease(sleeper, plain, name, "a")
        assert not plain.list_workers(name)["a"].waiting
        sleeper.signal(signal.SIGCONT)
        wait_for(lambda: plain.list_workers(name)["a"].waiting, "its push waits again")
        other.tell("step", gradient=7)
        outcomes = [one.outcome() for one in (sleeper, other)]
    assert [(each["weights"], each["version"]) for each in outcomes] == [([-8] * 4, 2)] * 2
    assert (outcomes[0]["epoch"], outcomes[1]["epoch"]) == (2, 1)


def test_18_a_worker_whose_name_was_taken_while_it_was_stopped_stops(
    strict: LocalServer, strict_plain: Plain, name: str
):
    plain = strict_plain
    with ExitStack() as stack:
        zombie = stack.enter_context(worker(strict.address, name, "a"))
        zombie.ask("step", gradient=1)
        stop_past_its_lease(zombie, plain, name, "a")
        successor = stack.enter_context(worker(strict.address, name, "a"))
        zombie.signal(signal.SIGCONT)
        for call in ("step", "pull", "step"):
            outcome = zombie.ask(call, gradient=1000)
            assert outcome["error"] == "StaleEpoch"
            assert all(part in outcome["message"] for part in ("joined again by host", "has epoch 2"))
        assert successor.ask("step", gradient=2)["weights"] == [-3] * 4
        # It was the name, not the lease: the successor's running out gives it to nobody.
        stop_past_its_lease(successor, plain, name, "a")
        assert zombie.ask("step", gradient=1000)["error"] == "StaleEpoch"
        successor.signal(signal.SIGCONT)
        assert successor.ask("step", gradient=4)["weights"] == [-7] * 4


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_18_an_optimizer_of_torch_goes_on_too(strict: LocalServer, strict_plain: Plain, name: str, lane: str, caplog):
    import torch

    from optd.torch import SGD

    plain = strict_plain
    with optd.connect(strict.address, job=name, worker="w0", lane=lane, timeout=SECONDS) as session:
        weights = torch.zeros(4)
        optimizer = SGD([weights], lr=1.0, momentum=0.5, session=session)

        def step(gradient: float) -> None:
            weights.grad = torch.full((4,), float(gradient))
            optimizer.step()

        step(1)
        session._heartbeat.stop()  # as if the process stood still
        for call, expected in (
            (lambda: step(2), -3.5),
            (optimizer.push, -3.5),
            (lambda: optimizer.load_state_dict(optimizer.state_dict()), -3.5),
            (lambda: optimizer.add_param_group({"params": [torch.zeros(2)]}), -6.75),
            (optimizer.push_weights, -6.75),
        ):
            wait_for(lambda: not is_active(plain, name, "w0"), "its lease runs out")
            call()
            assert weights.tolist() == [expected] * 4
        assert (session.epoch, session.lane) == (6, lane)
        assert [record.getMessage().count("has joined again") for record in caplog.records] == [1] * 5


def test_18_rounds_of_a_worker_whose_lease_runs_out_again_and_again_lose_no_push(
    strict: LocalServer, strict_plain: Plain, name: str
):
    plain = strict_plain
    with ExitStack() as stack:
        one = stack.enter_context(worker(strict.address, name, "a", 2))
        other = stack.enter_context(worker(strict.address, name, "b", 2))
        for number in range(3):
            other.tell("step", gradient=1)
            stop_past_its_lease(one, plain, name, "a")
            one.tell("step", gradient=3)
            one.signal(signal.SIGCONT)
            assert one.outcome()["version"] == other.outcome()["version"] == number + 1
        assert plain.weights(name)["param0"].tolist() == [-6] * 4
        workers = plain.list_workers(name)
        assert [(workers[each].epoch, workers[each].pushes) for each in "ab"] == [(4, 3), (1, 3)]


def test_18_readers_and_closing_need_no_lease(strict: LocalServer, strict_plain: Plain, name: str):
    """What needs no lease works without joining again, and closing does not wait for the server."""
    plain = strict_plain
    with optd.connect(strict.address, job=name, worker="w0", timeout=SECONDS) as session:
        optimizer = optd.SGD([np.zeros(4, "f4")], lr=1.0, session=session)
        optimizer.step([np.ones(4, "f4")])
        session._heartbeat.stop()
        wait_for(lambda: not is_active(plain, name, "w0"), "its lease runs out")
        assert session.pull()["param0"].tolist() == [-1] * 4
        assert session.epoch == 1
        in_background(session.close).result(SECONDS)
    assert not is_active(plain, name, "w0")
