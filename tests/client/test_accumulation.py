"""Gradients of several pushes that make one step, through both faces and on both lanes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tests.client.test_conditioned_gradients import summary

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName

SIZES = (70_000, 30)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_as_a_loop_of_torch_that_adds_up_losses(server: LocalServer, name: str, lane: LaneName) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in SIZES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    reference = torch.optim.Adam(theirs, lr=0.01)
    gradients = optd.Gradients(accumulate=3, clip_norm=20.0)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients) as session:
        optimizer = optd.torch.Adam(ours, lr=0.01, session=session)
        for push in range(7):
            for parameter, other in zip(ours, theirs, strict=True):
                parameter.grad = torch.randn_like(parameter)
                other.grad = parameter.grad / 3 if push % 3 == 0 else other.grad + parameter.grad / 3
            before = [parameter.detach().clone() for parameter in ours]
            optimizer.step()
            if push % 3 < 2:
                assert all(torch.equal(parameter, old) for parameter, old in zip(ours, before, strict=True))
                assert summary(session).accumulated == push % 3 + 1
                continue
            torch.nn.utils.clip_grad_norm_(theirs, 20.0)
            reference.step()
            assert optimizer.version == (push + 1) // 3
            for parameter, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-15)
        assert summary(session).clipped_steps == 2


def test_weights_and_missing_parameters_and_rows(server: LocalServer, name: str) -> None:
    weights = {"a": np.zeros(3), "b": np.zeros(2), "t": np.zeros((4, 2))}
    ones = np.ones((2, 2))
    with optd.connect(server.address, job=name, gradients=optd.Gradients(accumulate=3)) as session:
        optimizer = optd.SGD(weights, lr=1.0, session=session)
        first = optimizer.push({"a": np.full(3, 1.0), "t": ([1, 3], ones)}, weight=2)
        second = optimizer.push({"a": np.full(3, 4.0), "b": np.full(2, 5.0), "t": ([3, 0], 2 * ones)})
        third = optimizer.step({"b": np.full(2, 8.0)}, weight=0.5)
    assert [(r.accumulated, r.version.version, r.applied_version) for r in (first, second, third)] == [
        (1, 0, 1),
        (2, 0, 1),
        (0, 1, 1),
    ]
    np.testing.assert_allclose(weights["a"], -(2 * 1 + 4) / 3, rtol=1e-15)
    np.testing.assert_allclose(weights["b"], -(5 + 0.5 * 8) / 1.5, rtol=1e-15)
    np.testing.assert_allclose(weights["t"][:, 0], [-2 / 3, -2 / 3, 0, -4 / 3], rtol=1e-15)


def test_a_parameter_of_which_some_have_rows_and_others_all(server: LocalServer, name: str) -> None:
    table = np.zeros((3, 2))
    with optd.connect(server.address, job=name, gradients=optd.Gradients(accumulate=2)) as session:
        optimizer = optd.SGD({"t": table}, lr=1.0, session=session)
        optimizer.push({"t": ([2], np.full((1, 2), 6.0))}, weight=2)
        optimizer.step({"t": np.full((3, 2), 3.0)})
    np.testing.assert_allclose(table[:, 0], [-1, -1, -5], rtol=1e-15)


def test_rounds_of_several_workers(server: LocalServer, name: str) -> None:
    def train(number: int) -> tuple[list[int], list[float]]:
        weights = np.zeros(2)
        how = {"policy": optd.Sync(2), "gradients": optd.Gradients(accumulate=2), "worker": f"w{number}"}
        with optd.connect(server.address, job=name, **how) as session:
            optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
            results = [optimizer.step({"w": np.full(2, value)}, weight=number + 1) for value in (1.0 + number, 4.0)]
        return [result.accumulated for result in results], weights.tolist()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, range(2)))
    # (1 * 1 + 2 * 2 + 1 * 4 + 2 * 4) / 6
    assert [accumulated for accumulated, _ in found] == [[1, 0]] * 2
    np.testing.assert_allclose([weights for _, weights in found], -17 / 6, rtol=1e-15)


def test_a_gradient_that_is_skipped_is_not_added_up(server: LocalServer, name: str) -> None:
    weights = np.zeros(2)
    gradients = optd.Gradients(accumulate=2, nonfinite="skip")
    with optd.connect(server.address, job=name, gradients=gradients) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.push({"w": np.full(2, 1.0)})
        skipped = optimizer.push({"w": np.array([np.nan, 1.0])})
        assert (skipped.skipped, skipped.accumulated, skipped.applied_version) == (True, 1, 0)
        assert summary(session).accumulated == 1
        optimizer.step({"w": np.full(2, 3.0)})
    assert weights.tolist() == [-2, -2]


def test_fewer_at_once_and_a_group_that_comes_between(server: LocalServer, name: str) -> None:
    weights, later = np.zeros(2), np.zeros(3)
    with optd.connect(server.address, job=name, gradients=optd.Gradients(accumulate=5)) as session:
        optimizer = optd.SGD([{"params": {"w": weights}}], lr=1.0, session=session)
        planned = [job.planned_bytes for job in session._transport.list_jobs(10) if job.name == name]
        for _ in range(2):
            optimizer.push([[np.full(2, 1.0)]])
        optimizer.add_param_group({"params": {"later": later}, "lr": 2.0})
        session.set_options(accumulate=3)
        optimizer.step([[np.full(2, 4.0)], [np.full(3, 1.0)]])
        session.set_options(accumulate=1)
        assert weights.tolist() == [-2, -2]
        assert later.tolist() == [-2] * 3  # the mean over those that have it
        assert optimizer.version == 1
        assert optimizer.step([[np.full(2, 1.0)], [None]]).applied_version == 2
        now = [job.planned_bytes for job in session._transport.list_jobs(10) if job.name == name]
        slots_and_snapshots = 3 + 4
        assert now[0] - 5 * 8 * slots_and_snapshots == planned[0] - 2 * 8 * (slots_and_snapshots + 1)


def test_an_accumulate_that_is_none_is_refused(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session)
        with pytest.raises(errors.OptionOutOfRange, match=r"job: accumulate must be in \[1, inf\), got 0"):
            session.set_options(accumulate=0)
