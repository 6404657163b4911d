"""Policies through the client and a server: what steps are made of, and what workers are told."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from contract.plain import frame, header, refusal_of
from faults.processes import in_background, wait_for

import optd
from optd import errors
from optd.local import LocalServer
from optd.staleness import Exponential
from optd_wire.v1 import training_service_pb2


@pytest.fixture
def opened(server: LocalServer, name: str):
    """Opens optimizers of one job, by worker: SGD with a rate of 1 on four zeros."""
    with ExitStack() as stack:

        def open_one(worker: str, policy=None, **more) -> optd.Optimizer:
            session = stack.enter_context(
                optd.connect(server.address, job=name, worker=worker, policy=policy, timeout=20, lane="grpc", **more)
            )
            return optd.SGD({"w": np.zeros(4)}, lr=1.0, session=session)

        yield open_one


def gradient(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(4, value)}


def weights(optimizer: optd.Optimizer) -> list[float]:
    return optimizer.session.pull()["w"].tolist()


# Async


@pytest.mark.parametrize(
    ("scale", "factors"),
    [
        (None, [1, 1, 1, 1]),
        ("inverse", [1, 1 / 2, 1 / 3, 1 / 4]),
        (Exponential(0.5), [np.exp(-0.5 * t) for t in range(4)]),
        (Exponential(0.5, 3.0), [np.exp(-0.5 * t) * (1 + np.cos(np.pi * t / 3)) / 2 * (t < 3) for t in range(4)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_stale_gradients_count_as_the_policy_says(server, name, scale, factors, lane):
    """Beside torch, with momentum: what is scaled is the gradient, before the algorithm sees it."""
    reference = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    own = torch.optim.SGD([reference], lr=0.5, momentum=0.9)
    policy = optd.Async(staleness=scale)
    with optd.connect(server.address, job=name, worker="w", policy=policy, lane=lane) as session:
        optimizer = optd.SGD({"w": np.zeros(4)}, lr=0.5, momentum=0.9, session=session)
        for staleness, factor in enumerate(factors):
            value = np.arange(4.0) + staleness
            pushed = optimizer.push({"w": value})  # no pull, so the next one is staler by one
            assert pushed.staleness == staleness
            reference.grad = torch.tensor(value * factor)
            own.step()
        np.testing.assert_allclose(session.pull()["w"], reference.detach().numpy(), rtol=1e-15, atol=1e-15)


def test_a_gradient_that_is_too_stale_is_refused_and_the_worker_goes_on(opened, caplog):
    slow, fast = opened("slow", optd.Async(max_staleness=1)), opened("fast")
    for _ in range(2):
        fast.step(gradient(1.0))
    with pytest.raises(
        errors.StaleGradient, match="of version 0 of job .* at version 2: its staleness must be at most 1"
    ):
        slow.push(gradient(100.0))
    with caplog.at_level(logging.WARNING, "optd"):
        result = slow.step(gradient(100.0))
    assert "staleness must be at most 1, and is 2" in result.dropped
    assert result is slow.last
    assert "a gradient of worker slow came too late and was dropped (1 so far)" in caplog.text
    assert slow.params["w"].tolist() == [-2.0] * 4, "it has pulled"
    assert not slow.step(gradient(1.0)).dropped
    assert weights(fast) == [-3.0] * 4


# Sync


def test_a_quorum_goes_on_without_the_slow_one_which_is_told(opened, caplog):
    policy = optd.Sync(3, quorum=2)
    a, b, c = (opened(worker, policy) for worker in "abc")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(a.step, gradient(1.0)), pool.submit(b.step, gradient(3.0))
        assert [first.result().pushes, second.result().pushes] == [2, 2]
    with pytest.raises(
        errors.RoundClosed,
        match="version 0 of job .*, but the next step has been made without it; .* at version 1",
    ):
        c.push(gradient(100.0))
    with caplog.at_level(logging.WARNING, "optd"):
        late = c.step(gradient(100.0))
    assert "made without it" in late.dropped
    assert c.params["w"].tolist() == [-2.0] * 4
    with ThreadPoolExecutor(2) as pool:
        third, fourth = pool.submit(a.step, gradient(1.0)), pool.submit(c.step, gradient(1.0))
        assert not third.result().dropped
        assert not fourth.result().dropped
    assert weights(a) == [-3.0] * 4
    infos = {info.name: info for info in a.session.workers()}
    assert infos["c"].pushes == 1


def test_one_whose_gradient_is_on_its_way_when_the_round_closes_learns_of_the_new_weights(server, plain, opened, name):
    """It is told when there is something to pull, and need not come to the end of what it sends."""
    a = opened("a", optd.Sync(2, quorum=1, grace=0.3))
    epoch = plain.join(name, "b")
    end = threading.Event()

    def half():
        yield training_service_pb2.PushRequest(header=header(name, "b", epoch, 1), frames=[frame(np.ones(2))])
        end.wait(20)

    late = plain.training.Push.future(half(), timeout=20)
    wait_for(lambda: any(info.name == "b" and info.waiting for info in a.session.workers()), "b sends")
    a.step(gradient(1.0))
    refusal = refusal_of(late.exception(20))
    end.set()
    assert refusal.reason == "ROUND_CLOSED"
    assert refusal.values["version"] == "1"


def test_of_more_workers_than_a_round_takes_the_last_one_is_late(opened):
    policy = optd.Sync(2)
    a, b, c = (opened(worker, policy) for worker in "abc")
    first = in_background(lambda: a.step(gradient(1.0)))
    b.step(gradient(3.0))
    first.result(20)
    assert "made without it" in c.step(gradient(100.0)).dropped
    second = in_background(lambda: a.step(gradient(1.0)))
    assert not c.step(gradient(1.0)).dropped, "it has pulled, and is in the next round"
    second.result(20)
    assert weights(a) == [-3.0] * 4
    dropped = {info.name: info.dropped_rounds for info in a.session.workers()}
    assert dropped == {"a": 0, "b": 1, "c": 1}


def test_a_round_that_is_skipped_for_its_nan_makes_nobody_late(opened):
    policy = optd.Sync(2)
    a, b, c = (opened(worker, policy, gradients=optd.Gradients(nonfinite="skip")) for worker in "abc")
    first = in_background(lambda: a.step(gradient(np.nan)))
    assert b.step(gradient(3.0)).skipped
    first.result(20)
    second = in_background(lambda: b.step(gradient(1.0)))
    assert not c.step(gradient(3.0)).dropped
    second.result(20)
    assert weights(a) == [-2.0] * 4


def test_a_fragment_cannot_be_accumulated(server, name):
    arrays = {"v": np.zeros(2), "w": np.zeros(4)}
    gradients = optd.Gradients(accumulate=2)
    with (
        optd.connect(server.address, job=name, worker="a", gradients=gradients) as session,
        optd.LocalSteps(arrays, every=2, fragments=2, session=session) as local,
    ):
        arrays["w"] += 1.0
        with pytest.raises(errors.InvalidRequest, match=r"accumulates rounds, and worker 'a' pushes fragment \d: set"):
            local.step()


def test_means_are_weighted_also_over_a_quorum(opened):
    policy = optd.Sync(3, quorum=2)
    a, b, _ = (opened(worker, policy) for worker in "abc")
    with ThreadPoolExecutor(2) as pool:
        for future in (
            pool.submit(a.step, gradient(1.0), weight=3.0),
            pool.submit(b.step, gradient(5.0), weight=1.0),
        ):
            future.result()
    assert weights(a) == [-2.0] * 4


def test_live_workers_shrink_and_grow(opened):
    policy = optd.Sync("live")
    a, b = opened("a", policy), opened("b", policy)
    waiting = in_background(lambda: a.step(gradient(1.0)))
    b.session.close()
    assert waiting.result(20).pushes == 1
    c = opened("c", policy)
    waiting = in_background(lambda: a.step(gradient(1.0)))
    assert c.step(gradient(3.0)).pushes == 2
    waiting.result(20)
    assert weights(a) == [-3.0] * 4


def test_a_grace_window_in_seconds_closes_a_round_by_itself(opened):
    policy = optd.Sync(2, quorum=1, grace=0.2)
    a, b = opened("a", policy), opened("b", policy)
    assert a.step(gradient(1.0)).pushes == 1
    assert b.step(gradient(1.0)).dropped


def test_a_round_ends_when_its_time_is_up(opened):
    policy = optd.Sync(3, round_seconds=0.2)
    a = opened("a", policy)
    assert a.step(gradient(1.0)).pushes == 1


def test_a_worker_that_leaves_fails_the_round_if_the_policy_says_so(opened):
    policy = optd.Sync(2, on_death="fail")
    a, b = opened("a", policy), opened("b", policy)
    waiting = in_background(lambda: a.step(gradient(1.0)))
    wait_for(lambda: any(info.waiting for info in b.session.workers()), "a waits")
    b.session.close()
    with pytest.raises(errors.WorkerLost, match="because worker 'b' has left"):
        waiting.result(20)
    assert weights(a) == [0.0] * 4


# Bounded


def test_a_worker_that_is_too_far_ahead_waits_for_the_slowest(opened):
    policy = optd.Bounded(1)
    fast, slow = opened("fast", policy), opened("slow", policy)
    for _ in range(2):
        fast.step(gradient(1.0))
    waiting = in_background(lambda: fast.step(gradient(1.0)))
    wait_for(lambda: any(info.waiting for info in slow.session.workers()), "the fast one waits")
    slow.step(gradient(1.0))
    waiting.result(20)
    assert weights(fast) == [-4.0] * 4


# Changes of the policy


def test_the_policy_of_a_running_job_is_changed_for_those_that_wait_too(opened, name, caplog):
    policy = optd.Sync(2)
    a = opened("a", policy)
    waiting = in_background(lambda: a.step(gradient(1.0)))
    wait_for(lambda: any(info.waiting for info in a.session.workers()), "a waits")
    assert a.session.set_policy(optd.Async()) == optd.Async()
    assert not waiting.result(20).dropped
    assert a.session.info().policy == optd.Async()
    with caplog.at_level(logging.WARNING, "optd"):
        again = opened("b", policy)  # as its script has it, which nobody has changed
    assert "which the job was created with; somebody has changed it to Async" in caplog.text
    again.step(gradient(1.0))
    with pytest.raises(errors.JobMismatch, match="policy"):
        opened("c", optd.Sync(5))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (optd.Sync(0), r"policy sync: workers must be in \[1, 4096\] or 'live', got 0"),
        (optd.Sync(2, quorum=3), r"quorum must be in \[1, 2\], got 3"),
        (optd.Async(Exponential(-1.0)), "alpha of staleness"),
    ],
    ids=str,
)
def test_a_policy_out_of_range_is_refused_by_the_server(opened, policy, says):
    a = opened("a")
    with pytest.raises(errors.InvalidPolicy, match=says):
        a.session.set_policy(policy)
    assert a.session.info().policy == optd.Async()


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("sync", r"policy must be optd.Async\(...\), optd.Sync\(...\) or optd.Bounded\(...\), got 'sync'"),
        (optd.Sync("alive"), "workers of optd.Sync must be a number or 'live', got 'alive'"),
        (optd.Sync(2.0), "workers of optd.Sync"),
        (optd.Sync(2, quorum=-1), "quorum of optd.Sync"),
        (optd.Sync(2, quorum=1, grace="soon"), "grace of optd.Sync must be seconds or 'auto', got 'soon'"),
        (optd.Sync(2, on_death="cry"), "on_death of optd.Sync must be 'wait', 'continue' or 'fail', got 'cry'"),
        (optd.Async("linear"), "staleness of optd.Async must be None, 'inverse' or"),
        (optd.Async(max_staleness=True), "max_staleness of optd.Async"),
        (optd.Bounded(None), "staleness of optd.Bounded must be a number of steps, got None"),
    ],
    ids=str,
)
def test_a_policy_of_a_wrong_type_is_refused_by_the_client(server, policy, says):
    with pytest.raises(errors.InvalidRequest, match=says):
        optd.connect(server.address, job="none", policy=policy)
