"""LBFGS with closures that write to what they optimize: torch's numbers, and no more evaluations than torch makes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd.local import LocalServer

SEARCH = pytest.mark.parametrize("search", [None, "strong_wolfe"])
LANE = pytest.mark.parametrize("lane", ["grpc", "shm"])
TARGET = torch.linspace(-1.5, 2.5, 12, dtype=torch.float64).view(3, 4)
SCALES = torch.linspace(1, 3, 12, dtype=torch.float64).view(3, 4)
START = torch.linspace(3.0, -2.0, 12, dtype=torch.float64).view(3, 4)

Write = Callable[[torch.Tensor, int], None]
"""What a closure writes to the weights, at its call of some number."""


def clamp(weights: torch.Tensor, call: int) -> None:
    """As the style transfer tutorial does."""
    weights.clamp_(0, 1)


def clamp_at_times(weights: torch.Tensor, call: int) -> None:
    if call % 3 == 1:
        weights.clamp_(-0.5, 0.5)


def drift(weights: torch.Tensor, call: int) -> None:
    """Other weights at every call."""
    weights.add_(0.01 * call)


def one_row(weights: torch.Tensor, call: int) -> None:
    weights[1] = 0.25


WRITES = pytest.mark.parametrize("write", [clamp, clamp_at_times, drift, one_row])


def loss_of(weights: torch.Tensor) -> torch.Tensor:
    return (SCALES * (weights - TARGET) ** 2).sum() + weights.sin().sum()


class Calls:
    """A closure, which counts its calls and keeps what it has found."""

    def __init__(self, weights: torch.Tensor, write: Write, optimizer: Any = None) -> None:
        self.weights, self.write, self.optimizer = weights, write, optimizer
        self.seen: list[float] = []

    def torchs(self) -> torch.Tensor:
        self.write(self.weights.data, len(self.seen))
        self.optimizer.zero_grad()
        loss = loss_of(self.weights)
        loss.backward()
        self.seen.append(float(loss.detach()))
        return loss

    def numpys(self, array: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        self.write(torch.from_numpy(array), len(self.seen))
        weights = torch.from_numpy(array).clone().requires_grad_()
        loss = loss_of(weights)
        loss.backward()
        self.seen.append(float(loss.detach()))
        return float(loss.detach()), {"w": weights.grad.numpy()}


# A long line search along which a clamp leaves the loss as it is turns on the last bits, in torch too.
@pytest.mark.parametrize("lane", ["grpc", pytest.param("shm", marks=pytest.mark.slow)])
@WRITES
@pytest.mark.parametrize(
    ("search", "max_iter"),
    [
        *((None, most) for most in (1, 2)),
        *(pytest.param(None, most, marks=pytest.mark.slow) for most in (5, 20)),
        *(("strong_wolfe", most) for most in (1, 2)),
        pytest.param("strong_wolfe", 5, marks=pytest.mark.slow),
    ],
)
def test_both_faces_give_torchs_numbers(
    server: LocalServer, name: str, write: Write, search: str | None, max_iter: int, lane: str
) -> None:
    options: dict[str, Any] = {"lr": 0.1, "max_iter": max_iter, "history_size": 4, "line_search_fn": search}
    theirs, ours, array = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone()), START.clone().numpy()
    reference = torch.optim.LBFGS([theirs], **options)
    expected = Calls(theirs, write, reference)
    with (
        optd.connect(server.address, job=f"{name}-torch", lane=lane) as one,
        optd.connect(server.address, job=f"{name}-numpy", lane=lane) as two,
    ):
        torchs = optd.torch.LBFGS([("w", ours)], session=one, **options)
        numpys = optd.LBFGS({"w": array}, session=two, **options)
        found, third = Calls(ours, write, torchs), Calls(ours, write)
        for _ in range(4):
            first = float(reference.step(expected.torchs).detach())
            assert float(torchs.step(found.torchs).detach()) == pytest.approx(first, rel=1e-9)
            assert numpys.step(lambda: third.numpys(array)) == pytest.approx(first, rel=1e-9)
            np.testing.assert_allclose(found.seen, expected.seen, rtol=1e-9)
            np.testing.assert_allclose(third.seen, expected.seen, rtol=1e-9)
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(torch.from_numpy(array), theirs.detach(), rtol=1e-9, atol=1e-10)
        assert torchs.version == numpys.version == len(expected.seen)


def test_a_long_search_ends_in_torchs_weights(server: LocalServer, name: str) -> None:
    options: dict[str, Any] = {"lr": 0.1, "max_iter": 20, "line_search_fn": "strong_wolfe"}
    theirs, ours = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
    reference = torch.optim.LBFGS([theirs], **options)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.torch.LBFGS([ours], session=session, **options)
        expected, found = Calls(theirs, clamp, reference), Calls(ours, clamp, optimizer)
        for _ in range(4):
            reference.step(expected.torchs)
            optimizer.step(found.torchs)
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-10)
            assert abs(len(found.seen) - len(expected.seen)) <= 1


@SEARCH
def test_tensors_in_shared_memory(server: LocalServer, name: str, search: str | None) -> None:
    options: dict[str, Any] = {"lr": 0.2, "max_iter": 6, "line_search_fn": search}
    theirs, ours = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
    reference = torch.optim.LBFGS([theirs], **options)
    with optd.connect(server.address, job=name, lane="shm") as session:
        optimizer = optd.torch.LBFGS([ours], session=session, zero_copy=True, **options)
        expected, found = Calls(theirs, clamp, reference), Calls(ours, clamp, optimizer)
        for _ in range(4):
            reference.step(expected.torchs)
            optimizer.step(found.torchs)
            np.testing.assert_allclose(found.seen, expected.seen, rtol=1e-9)
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-10)


@SEARCH
def test_a_closure_that_pushes_weights_is_called_as_often_as_without(
    server: LocalServer, name: str, search: str | None
) -> None:
    options: dict[str, Any] = {"lr": 0.2, "max_iter": 6, "line_search_fn": search}
    theirs, ours = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
    reference = torch.optim.LBFGS([theirs], **options)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.torch.LBFGS([ours], session=session, **options)
        expected, found = Calls(theirs, clamp, reference), Calls(ours, clamp, optimizer)

        def pushing() -> torch.Tensor:
            loss = found.torchs()
            optimizer.push_weights()
            return loss

        for _ in range(3):
            reference.step(expected.torchs)
            optimizer.step(pushing)
            np.testing.assert_allclose(found.seen, expected.seen, rtol=1e-9)


def test_no_closure_keeps_a_step_going_for_ever(server: LocalServer, name: str) -> None:
    """Whatever it does to the job between two evaluations."""
    ours = torch.nn.Parameter(START.clone())
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.torch.LBFGS([ours], lr=0.1, max_iter=10, max_eval=12, session=session)
        found = Calls(ours, drift, optimizer)
        optimizer.step(found.torchs)

        def after(act: Callable[[], Any]) -> Callable[[], torch.Tensor]:
            def closure() -> torch.Tensor:
                assert len(found.seen) < 1_000
                loss = found.torchs()
                act()
                return loss

            return closure

        acts = [
            lambda: optimizer.load_state_dict(optimizer.state_dict()),
            optimizer.state.clear,
            lambda: optimizer.param_groups[0].update(lr=0.1 + len(found.seen) / 1e4),
            lambda: session.set_options(nonfinite="skip" if len(found.seen) % 2 else "zero"),
            optimizer.state_dict,
        ]
        for act in acts:
            before = len(found.seen)
            optimizer.step(after(act))
            assert 1 <= len(found.seen) - before <= 12
            before = len(found.seen)
            optimizer.step(found.torchs)
            assert 1 <= len(found.seen) - before <= 12


def test_where_a_loss_is_no_number_the_weights_that_were_written_stay(server: LocalServer, name: str) -> None:
    array = np.array([2.0, -2.0])
    calls = []

    def closure() -> tuple[float, dict[str, np.ndarray]]:
        calls.append(array.copy())
        array.clip(-1, 1, out=array)
        bad = len(calls) == 3
        return (np.nan if bad else float((array**2).sum())), {"w": array * (np.nan if bad else 2)}

    with optd.connect(server.address, job=name) as session:
        optimizer = optd.LBFGS({"w": array}, lr=0.3, max_iter=8, session=session)
        optimizer.step(closure)
        assert len(calls) == 3
        np.testing.assert_allclose(array, np.clip(calls[1], -1, 1), rtol=1e-12)
        assert np.isfinite(array).all()
