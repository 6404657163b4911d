"""Workers that are stopped, killed and replaced: whoever has lost its epoch changes nothing any more."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of, refused
from faults.processes import SECONDS, in_background, wait_for, worker

import optd
from optd.local import LocalServer, local
from optd_wire.v1 import training_service_pb2, worker_service_pb2

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


def step_of(session: optd.Session, weights: np.ndarray, gradient: float) -> object:
    """Registers, and steps once."""
    return optd.SGD([weights], lr=1.0, session=session).step([np.full(4, gradient, "f4")])


def test_18_a_push_of_an_epoch_whose_lease_ran_out_changes_nothing(strict: LocalServer, strict_plain: Plain, name: str):
    """The zombie's own old push; a client that joins again sends it under a new epoch (test_stopped.py)."""
    plain = strict_plain
    plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
    epoch = plain.join(name, "zombie")
    plain.push(header(name, "zombie", epoch, 1), [frame(np.ones(4, "f4"))])
    wait_for(lambda: not is_active(plain, name, "zombie"), "its lease runs out")
    before = plain.everything(name)
    with pytest.raises(grpc.RpcError) as caught:
        plain.push(header(name, "zombie", epoch, 2), [frame(np.full(4, 1000, "f4"))])
    refusal = refusal_of(caught.value)
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "LEASE_EXPIRED")
    assert all(part in refusal.text for part in ("'zombie'", f"lease of {LEASE:g} s ran out", "join again"))
    assert plain.everything(name) == before
    assert plain.rejections(name).counts["LEASE_EXPIRED"] == 1


@pytest.mark.slow
def test_18_a_worker_stopped_in_mid_push_is_not_in_the_round(strict: LocalServer, strict_plain: Plain, name: str):
    """Its push waits when it is stopped, and is withdrawn where another one takes its place."""
    plain = strict_plain
    with ExitStack() as stack:
        zombie = stack.enter_context(worker(strict.address, name, "a", 2))
        other = stack.enter_context(worker(strict.address, name, "b", 2))
        zombie.tell("step", gradient=1000)
        wait_for(lambda: plain.list_workers(name)["a"].waiting, "its push waits")
        zombie.signal(signal.SIGSTOP)
        successor = stack.enter_context(worker(strict.address, name, "a", 2))
        assert not plain.list_workers(name)["a"].waiting
        successor.tell("step", gradient=1)
        other.tell("step", gradient=3)
        assert successor.outcome()["weights"] == other.outcome()["weights"] == [-2] * 4
        zombie.signal(signal.SIGCONT)
        outcome = zombie.outcome()
        assert outcome["error"] in ("PushWithdrawn", "StaleEpoch")
        assert "'a'" in outcome["message"]
        assert plain.weights(name)["param0"].tolist() == [-2] * 4
        assert plain.info(name).version.version == 1


@pytest.mark.slow
def test_a_worker_that_is_only_slow_keeps_its_lease(strict: LocalServer, strict_plain: Plain, name: str):
    """It computes for longer than a lease; its heartbeat goes on."""
    plain = strict_plain
    with worker(strict.address, name, "slow") as slow:
        assert slow.ask("step", gradient=1)["version"] == 1
        plain.join(name, "measure")  # has no heartbeat: when its lease is over, a lease has passed
        wait_for(lambda: not is_active(plain, name, "measure"), "a lease passes")
        assert is_active(plain, name, "slow")
        assert slow.ask("step", gradient=1)["version"] == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_its_lease(strict: LocalServer, strict_plain: Plain, name: str):
    plain = strict_plain
    with worker(strict.address, name, "victim") as victim:
        assert victim.ask("step", gradient=1)["epoch"] == 1
        victim.signal(signal.SIGKILL)
        wait_for(lambda: not is_active(plain, name, "victim"), "its lease runs out")
    assert plain.summary(name).workers == 0


def test_a_program_that_ends_without_closing_its_session_leaves_at_once(server: LocalServer, plain: Plain, name: str):
    """Where it ends does not matter: here at the end of a function, as in most programs."""
    program = f"""
import numpy, optd
def main():
    session = optd.connect({server.address!r}, job={name!r}, worker="w0")
    optd.SGD([numpy.zeros(1)], session=session)
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=SECONDS, check=False)
    assert ended.returncode == 0
    assert not is_active(plain, name, "w0")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["leaves", "is killed", "is killed while it waits"])
def test_21_a_round_goes_on_with_a_worker_that_takes_another_ones_name(
    server: LocalServer, plain: Plain, name: str, ending: str
):
    """The lease is long: nobody waits for it to run out."""
    with ExitStack() as stack:
        stays = stack.enter_context(worker(server.address, name, "stays", 2))
        first = stack.enter_context(worker(server.address, name, "moves", 2))
        for one, gradient in ((stays, 1), (first, 3)):
            one.tell("step", gradient=gradient)
        assert [one.outcome()["weights"] for one in (stays, first)] == [[-2] * 4] * 2
        match ending:
            case "leaves":
                stays.tell("step", gradient=1)
                wait_for(lambda: plain.list_workers(name)["stays"].waiting, "one waits for the other")
                assert first.process.stdin is not None
                first.process.stdin.close()
                assert first.process.wait(SECONDS) == 0
                assert not is_active(plain, name, "moves")
            case "is killed":
                stays.tell("step", gradient=1)
                wait_for(lambda: plain.list_workers(name)["stays"].waiting, "one waits for the other")
                first.signal(signal.SIGKILL)
            case _:
                first.tell("step", gradient=1000)
                wait_for(lambda: plain.list_workers(name)["moves"].waiting, "its push waits")
                first.signal(signal.SIGKILL)
        second = stack.enter_context(worker(server.address, name, "moves", 2))
        second.tell("step", gradient=5)
        if ending == "is killed while it waits":
            wait_for(lambda: plain.list_workers(name)["moves"].waiting, "the new push waits")
            stays.tell("step", gradient=1)
        outcomes = [stays.outcome(), second.outcome()]
    assert [(outcome["weights"], outcome["version"]) for outcome in outcomes] == [([-5] * 4, 2)] * 2
    assert plain.weights(name)["param0"].tolist() == [-5] * 4


def test_a_push_that_was_begun_before_its_worker_was_fenced_is_refused(plain: Plain, name: str):
    """The epoch holds when the push begins, and ends while it is received."""
    plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
    plain.join(name, "w0")
    requests = plain_push(plain, name)
    with refused("PUSH_WITHDRAWN", "w0", "another process joined"):
        plain.training.Push(requests, timeout=SECONDS)
    assert plain.info(name).version.version == 0
    assert plain.push(header(name, "w0", 2, 1), [frame(np.ones(4, "f4"))]).version.version == 1


def plain_push(plain: Plain, name: str) -> Iterator[object]:
    yield training_service_pb2.PushRequest(header=header(name, "w0", 1, 1))
    yield training_service_pb2.PushRequest(frames=[frame(np.ones(2, "f4"))])
    assert plain.join(name, "w0") == 2
    yield training_service_pb2.PushRequest(frames=[frame(np.ones(2, "f4"), offset=2)], last=True)


def test_a_worker_that_leaves_takes_its_waiting_push_along(server: LocalServer, plain: Plain, name: str):
    policy = optd.Sync(workers=2)
    with (
        optd.connect(server.address, job=name, worker="a", policy=policy, timeout=SECONDS) as first,
        optd.connect(server.address, job=name, worker="b", policy=policy, timeout=SECONDS) as second,
    ):
        mine = np.zeros(4, "f4")
        waiting = in_background(lambda: step_of(first, mine, 1000))
        wait_for(lambda: name in plain.job_names(), "the job is there")
        wait_for(lambda: "a" in plain.list_workers(name) and plain.list_workers(name)["a"].waiting, "its push waits")
        plain.leave(name, "a", 1)
        with pytest.raises(optd.errors.PushWithdrawn, match=r"'a'.*left"):
            waiting.result(SECONDS)
        weights = np.zeros(4, "f4")
        stepping = in_background(lambda: step_of(second, weights, 3))
        wait_for(lambda: "b" in plain.list_workers(name) and plain.list_workers(name)["b"].waiting, "the other waits")
        plain.push(header(name, "a", plain.join(name, "a"), 1), [frame(np.ones(4, "f4"))])
        stepping.result(SECONDS)
    assert weights.tolist() == [-2] * 4


def test_a_zombie_cannot_pull_renew_or_leave(plain: Plain, name: str):
    """Nothing that a fenced worker does has an effect on the one that has its name."""
    plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
    plain.join(name, "w0")
    plain.join(name, "w0")
    before = plain.everything(name)
    with refused("STALE_EPOCH"):
        list(plain.training.Pull(training_service_pb2.PullRequest(job=name, worker="w0", epoch=1), timeout=SECONDS))
    with refused("STALE_EPOCH"):
        request = worker_service_pb2.RenewLeaseRequest(job=name, worker="w0", epoch=1)
        plain.workers.RenewLease(request, timeout=SECONDS)
    with refused("STALE_EPOCH"):
        plain.leave(name, "w0", 1)
    assert plain.everything(name) == before
