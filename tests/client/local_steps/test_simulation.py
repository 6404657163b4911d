"""Real workers beside single-process simulations of the published algorithms, to 1e-12 in float64."""

from collections.abc import Sequence

import numpy as np
import pytest
from tests.client.local_steps.problem import Inner, Nesterov, Weights, assert_equal, initial, together

import optd

ROUNDS = 4


def diloco(workers: int, every: int) -> tuple[Weights, list[Weights]]:
    """DiLoCo, https://arxiv.org/abs/2311.08105, algorithm 1: the global weights, and those of each worker."""
    theta, outer, inners = initial(), Nesterov(), [Inner(worker) for worker in range(workers)]
    for _ in range(ROUNDS):
        gradient = {name: np.zeros_like(array) for name, array in theta.items()}
        for inner in inners:
            local = {name: np.array(array) for name, array in theta.items()}
            for _ in range(every):
                inner.step(local)
            for name, array in local.items():
                gradient[name] = gradient[name] + (theta[name] - array) / workers
        outer.step(theta, gradient)
    return theta, [theta] * workers


def streaming(
    workers: int, every: int, fragments: Sequence[Sequence[str]], delay: int, alpha: float
) -> tuple[Weights, list[Weights]]:
    """Streaming DiLoCo, https://arxiv.org/abs/2501.18512, algorithm 2, with t_p = (p + 1) H / P."""
    theta, outer, inners = initial(), Nesterov(), [Inner(worker) for worker in range(workers)]
    locals_ = [initial() for _ in inners]
    under_way: dict[int, Weights] = {}
    for t in range(1, ROUNDS * every + 1):
        for inner, local in zip(inners, locals_, strict=True):
            inner.step(local)
        for p, names in enumerate(fragments):
            offset = (p + 1) * every // len(fragments)
            if t >= offset + delay and (t - offset - delay) % every == 0 and p in under_way:
                outer.step(theta, under_way.pop(p))
                for local in locals_:
                    for name in names:
                        local[name] = np.array(alpha * local[name] + (1 - alpha) * theta[name])
            if t >= offset and (t - offset) % every == 0:
                means = {name: sum(theta[name] - local[name] for local in locals_) / workers for name in names}
                if delay:
                    under_way[p] = means
                    continue
                outer.step(theta, means)
                for local in locals_:
                    for name in names:
                        local[name] = np.array(alpha * local[name] + (1 - alpha) * theta[name])
    for p, gradients in sorted(under_way.items(), key=lambda each: (each[0] + 1) * every // len(fragments)):
        outer.step(theta, gradients)
        for local in locals_:
            for name in fragments[p]:
                local[name] = np.array(alpha * local[name] + (1 - alpha) * theta[name])
    return theta, locals_


def train(server, job: str, workers: int, **options) -> tuple[Weights, list[Weights], list]:
    """The same with real workers in threads, each of which closes after the last step."""
    weights = [initial() for _ in range(workers)]
    fragments: list = []

    def work(worker: int) -> None:
        inner, policy = Inner(worker), optd.Sync(workers=workers)
        with optd.connect(server.address, job=job, worker=f"w{worker}", policy=policy) as session:
            with optd.LocalSteps(weights[worker], session=session, **options) as local:
                for _ in range(ROUNDS * options["every"]):
                    inner.step(weights[worker])
                    local.step()
                fragments.append(local.fragments)
            assert local.last.staleness == 0 or len(local.fragments) > 1

    with optd.connect(server.address, job=job, worker="first", policy=optd.Sync(workers=workers)) as session:
        optd.SGD(initial(), lr=0.7, momentum=0.9, nesterov=True, session=session)
    together([lambda worker=worker: work(worker) for worker in range(workers)])
    with optd.connect(server.address, job=job) as session:
        found = session.pull()
    return found, weights, fragments[0]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("every", [1, 5])
def test_sync_workers_do_as_diloco(server, name, workers, every):
    found, locals_, fragments = train(server, name, workers, every=every)
    theta, expected = diloco(workers, every)
    assert_equal(found, theta)
    for one, other in zip(locals_, expected, strict=True):
        assert_equal(one, other)
    assert len(fragments) == 1


@pytest.mark.parametrize(
    ("every", "fragments", "delay", "alpha"),
    [(6, 3, 0, 0.0), (6, 3, 0, 0.5), (7, 2, 0, 0.0), (6, 1, 2, 0.5), (6, 3, 1, 0.5), (6, 3, 4, 0.25), (5, 5, 4, 0.0)],
)
def test_sync_workers_do_as_streaming_diloco(server, name, every, fragments, delay, alpha):
    options = {"every": every, "fragments": fragments, "delay": delay, "alpha": alpha}
    found, locals_, names = train(server, name, 2, **options)
    assert sorted(name for part in names for name in part) == sorted(initial())
    theta, expected = streaming(2, every, names, delay, alpha)
    assert_equal(found, theta)
    for one, other in zip(locals_, expected, strict=True):
        assert_equal(one, other)


def delayed_nesterov(
    paces: Sequence[int], every: int, turns: int, *, n: int, c: float
) -> tuple[Weights, list[Weights]]:
    """Async Local-SGD, https://arxiv.org/abs/2401.09135, algorithms 2 and 3; worker i steps every paces[i] turns."""
    lr, beta = 0.7, 0.9
    theta, inners = initial(), [Inner(worker) for worker in range(len(paces))]
    locals_ = [initial() for _ in inners]
    bases = [initial() for _ in inners]
    counts = [0] * len(paces)
    m = {name: np.zeros_like(array) for name, array in theta.items()}
    delta = {name: np.zeros_like(array) for name, array in theta.items()}
    t = 0
    for turn in range(turns):
        for i, pace in enumerate(paces):
            if turn % pace:
                continue
            inners[i].step(locals_[i])
            counts[i] += 1
            if counts[i] % every:
                continue
            g = {name: bases[i][name] - locals_[i][name] for name in theta}
            for name in theta:
                delta[name] = delta[name] + g[name]
                if (t + 1) % n == 0:
                    m[name] = beta * m[name] + delta[name] / n
                    theta[name] = theta[name] - lr * ((1 - c * n + c) * beta * m[name] + g[name] / n)
                    delta[name] = np.zeros_like(delta[name])
                else:
                    theta[name] = theta[name] - lr * (c * beta * m[name] + g[name] / n)
            t += 1
            locals_[i] = {name: np.array(array) for name, array in theta.items()}
            bases[i] = {name: np.array(array) for name, array in theta.items()}
    return theta, locals_


@pytest.mark.parametrize(("n", "c"), [(1, 0.0), (3, 0.0), (3, 0.2)])
def test_async_workers_of_unequal_pace_do_as_async_local_sgd(server, name, n, c):
    paces, every, turns = (1, 2, 3), 4, 40
    outer = {"algorithm": "delayed_nesterov", "lr": 0.7, "momentum": 0.9, "delay": n, "activation": c}
    weights = [initial() for _ in paces]
    sessions = [optd.connect(server.address, job=name, worker=f"w{i}") for i in range(len(paces))]
    workers = [
        optd.LocalSteps(own, every=every, outer=outer, session=session)
        for own, session in zip(weights, sessions, strict=True)
    ]
    inners, staleness = [Inner(worker) for worker in range(len(paces))], []
    for turn in range(turns):
        for i, pace in enumerate(paces):
            if turn % pace == 0:
                inners[i].step(weights[i])
                workers[i].step()
                if workers[i].unsent == 0:
                    staleness.append(workers[i].last.staleness)
    theta, expected = delayed_nesterov(paces, every, turns, n=n, c=c)
    assert_equal(sessions[0].pull(), theta)
    for one, other in zip(weights, expected, strict=True):
        assert_equal(one, other)
    assert max(staleness) > 1, "no difference was stale"
    for session in sessions:
        session.close()
