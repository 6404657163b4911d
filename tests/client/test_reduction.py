"""Gradients that are added up instead of averaged: `optd.Gradients(reduction="sum")`, beside torch doing the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName

SIZES = (70_000, 30)
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


@LANES
@pytest.mark.parametrize("weight", [None, 0.5])
def test_microbatches_add_up_as_backward_does(
    server: LocalServer, name: str, lane: LaneName, weight: float | None
) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in SIZES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    reference = torch.optim.Adam(theirs, lr=0.01)
    gradients = optd.Gradients(accumulate=3, reduction="sum", clip_norm=300.0)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients) as session:
        optimizer = optd.torch.Adam(ours, lr=0.01, session=session)
        for push in range(6):
            for parameter, other in zip(ours, theirs, strict=True):
                parameter.grad = torch.randn_like(parameter)
                share = parameter.grad * (weight or 1.0)
                other.grad = share if push % 3 == 0 else other.grad + share
            optimizer.step(weight=weight)
            if push % 3 == 2:
                norm = torch.nn.utils.clip_grad_norm_(theirs, 300.0)
                reference.step()
                assert optimizer.last is not None
                assert optimizer.last.norm is not None
                assert optimizer.last.norm.gradient == pytest.approx(float(norm), rel=1e-12)
                assert optimizer.last.clipped == (float(norm) > 300.0)
                for parameter, other in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-15)


@LANES
def test_workers_of_a_round_add_up_with_their_weights(server: LocalServer, name: str, lane: LaneName) -> None:
    def train(number: int) -> list[float]:
        weights = {"a": np.zeros(3), "b": np.zeros(2)}
        how = {"policy": optd.Sync(3), "gradients": optd.Gradients(reduction="sum"), "lane": lane}
        with optd.connect(server.address, job=name, worker=f"w{number}", **how) as session:
            optimizer = optd.SGD(weights, lr=1.0, session=session)
            optimizer.step({"a": np.full(3, 1.0)} | ({"b": np.full(2, 5.0)} if number == 1 else {}), weight=number + 1)
            optimizer.step({"a": np.full(3, 10.0), "b": np.full(2, 1.0)})
            return [*weights["a"], *weights["b"]]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(train, range(3)))
    assert found == [[-(1 + 2 + 3) - 30.0] * 3 + [-2 * 5.0 - 3.0] * 2] * 3


@LANES
def test_a_push_of_its_own_is_multiplied_by_its_weight(server: LocalServer, name: str, lane: LaneName) -> None:
    weights = np.zeros(3)
    gradient = np.ones(3)
    with optd.connect(server.address, job=name, lane=lane, gradients=optd.Gradients(reduction="sum")) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.step({"w": gradient}, weight=3)
        optimizer.step({"w": gradient}, weight=2, loss_scale=4.0)
        assert (weights.tolist(), gradient.tolist()) == ([-3.5] * 3, [1.0] * 3)


def test_rows_add_up(server: LocalServer, name: str) -> None:
    table = np.zeros((4, 2))
    with optd.connect(server.address, job=name, gradients=optd.Gradients(reduction="sum", accumulate=3)) as session:
        optimizer = optd.SGD({"t": table}, lr=1.0, session=session)
        optimizer.push({"t": ([1, 3], np.ones((2, 2)))}, weight=2)
        optimizer.push({"t": ([3], np.full((1, 2), 5.0))})
        optimizer.step({"t": ([0], np.full((1, 2), 4.0))}, weight=0.5)
    assert table[:, 0].tolist() == [-2, -2, 0, -7]


def test_losses_of_a_round_add_up_for_lbfgs(server: LocalServer, name: str) -> None:
    """Two workers with half of the data each: the sum of their losses is the loss of the whole."""
    torch.manual_seed(1)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    reference = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    theirs = torch.optim.LBFGS([reference], max_iter=5, line_search_fn="strong_wolfe")

    def whole() -> torch.Tensor:
        theirs.zero_grad()
        loss = ((x @ reference - y) ** 2).sum()
        loss.backward()
        return loss

    theirs.step(whole)

    def train(number: int) -> torch.Tensor:
        part = slice(10 * number, 10 * number + 10)
        parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        how = {"policy": optd.Sync(2), "gradients": optd.Gradients(reduction="sum")}
        with optd.connect(server.address, job=name, worker=f"w{number}", **how) as session:
            optimizer = optd.torch.LBFGS([parameter], max_iter=5, line_search_fn="strong_wolfe", session=session)

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = ((x[part] @ parameter - y[part]) ** 2).sum()
                loss.backward()
                return loss

            optimizer.step(closure)
            return parameter.detach()

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(train, range(2)):
            torch.testing.assert_close(found, reference.detach(), rtol=1e-9, atol=1e-12)


def test_what_is_in_force_at_its_step_counts_for_a_whole_window(server: LocalServer, name: str) -> None:
    for before, after, expected in (("mean", "sum", -9.0), ("sum", "mean", -3.0)):
        weights = np.zeros(2)
        gradients = optd.Gradients(accumulate=2, reduction=before)  # type: ignore[arg-type]
        with optd.connect(server.address, job=f"{name}-{after}", gradients=gradients) as session:
            optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
            optimizer.push({"w": np.full(2, 3.0)}, weight=2)
            session.set_options(reduction=after)
            optimizer.step({"w": np.full(2, 3.0)})
        assert weights.tolist() == [expected] * 2


def test_another_reduction_is_refused(server: LocalServer, name: str) -> None:
    gradients = optd.Gradients(reduction="avg")  # type: ignore[arg-type]
    with (
        optd.connect(server.address, job=name, gradients=gradients) as session,
        pytest.raises(errors.InvalidOption, match=r"job: reduction must be one of 'mean', 'sum', got 'avg'"),
    ):
        optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session)
