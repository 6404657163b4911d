"""A checkpoint that is loaded gives torch's numbers, in every order that scripts load things in, in any job."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import optd
from optd.local import LocalServer
from optd.torch import AdamW

LR = 0.1


def made(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(100 + number)
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()


def saved(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


@pytest.fixture(params=["grpc", "shm"])
def lane(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def open_job(server: LocalServer, lane: str) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def construct(model: nn.Module, job: str, worker: str = "w0", **options: Any) -> AdamW:
        session = optd.connect(server.address, job=job, worker=worker, lane=lane)
        opened.append(session)
        return AdamW(model.parameters(), lr=LR, session=session, **options)

    yield construct
    for session in opened:
        session.close()


@pytest.fixture
def checkpoint(open_job: Callable[..., Any], job_names: Iterator[str]) -> dict[str, Any]:
    """What was saved after two steps, and what torch makes of it; the job has gone on since."""
    job = next(job_names)
    model = made(0)
    optimizer = open_job(model, job)
    for number in range(2):
        step(model, optimizer, number)
    found = saved(model, optimizer)
    for number in range(2, 5):
        step(model, optimizer, number)
    optimizer.session.close()
    expected = made(1)
    expected.load_state_dict(found["model"])
    reference = torch.optim.AdamW(expected.parameters(), lr=LR)
    reference.load_state_dict(copy.deepcopy(found["optimizer"]))  # which torch would train in place
    for number in range(2, 6):
        step(expected, reference, number)
    return {**found, "job": job, "expected": [parameter.detach() for parameter in expected.parameters()]}


def model_first(model: nn.Module, construct: Callable[[], Any], found: dict[str, Any]) -> Any:
    model.load_state_dict(found["model"])
    optimizer = construct()
    optimizer.load_state_dict(found["optimizer"])
    return optimizer


def optimizer_made_first(model: nn.Module, construct: Callable[[], Any], found: dict[str, Any]) -> Any:
    optimizer = construct()
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return optimizer


def optimizer_loaded_first(model: nn.Module, construct: Callable[[], Any], found: dict[str, Any]) -> Any:
    optimizer = construct()
    optimizer.load_state_dict(found["optimizer"])
    model.load_state_dict(found["model"])
    return optimizer


def state_read_in_between(model: nn.Module, construct: Callable[[], Any], found: dict[str, Any]) -> Any:
    """As accelerate and torch.distributed.checkpoint look at the state before they load it."""
    model.load_state_dict(found["model"])
    optimizer = construct()
    optimizer.state_dict()
    optimizer.load_state_dict(found["optimizer"])
    return optimizer


def loaded_twice(model: nn.Module, construct: Callable[[], Any], found: dict[str, Any]) -> Any:
    optimizer = model_first(model, construct, found)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return optimizer


ORDERS = [model_first, optimizer_made_first, optimizer_loaded_first, state_read_in_between, loaded_twice]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
@pytest.mark.parametrize("into", ["the job that has gone on", "a new job", "a job of another run"])
def test_a_run_is_resumed_with_the_numbers_of_torch(
    open_job: Callable[..., Any],
    job_names: Iterator[str],
    checkpoint: dict[str, Any],
    order: Callable[..., Any],
    into: str,
) -> None:
    job = checkpoint["job"] if into == "the job that has gone on" else next(job_names)
    if into == "a job of another run":
        other = made(7)
        optimizer = open_job(other, job, worker="other")
        step(other, optimizer, 0)
        optimizer.session.close()
    model = made(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = order(model, lambda: open_job(model, job), checkpoint)
        for number in range(2, 6):
            step(model, optimizer, number)
    for parameter, expected in zip(model.parameters(), checkpoint["expected"], strict=True):
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=1e-7)
