"""Real workers beside single-process simulations of the published algorithms, to 1e-12 in float64."""

import pytest
from tests.client.local_steps.problem import Inner, Weights, assert_equal, initial, together
from tests.client.local_steps.simulation import ROUNDS, delayed_nesterov, diloco, streaming

import optd


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
