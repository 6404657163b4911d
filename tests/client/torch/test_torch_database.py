"""Torch's own database of optimizers and the inputs that its tests give them: each set beside torch's class."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.client.torch.classes import NOT_IN_TORCH
from torch.testing._internal.common_optimizers import OptimizerInfo, OptimizerInput, optim_db

import optd
import optd.torch
from optd.errors import InvalidOption

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
SHAPES = ((2, 3), (2, 1))  # torch's test has a weight and a bias; as matrices, for Muon
STEPS = 5
# LBFGS divides by differences, which near the minimum are of neighbouring numbers: what summing in another order leaves
# of them is compared with the weights at the beginning.
NEAR_THE_MINIMUM = {torch.float32: 1e-4, torch.float64: 1e-9}
REFUSED = {
    "capturable": "no graph can capture a step on a server",
    "differentiable": "autograd does not reach into a server",
}
"""What inputs may ask for that a server cannot do."""

EACH = pytest.mark.parametrize("info", optim_db, ids=lambda info: info.name)


def inputs(info: OptimizerInfo) -> Iterator[OptimizerInput]:
    """What is valid for tensors on a CPU. Each call gives objects of its own."""
    yield from info.optim_inputs_func(device="cpu")


def refused_inputs(info: OptimizerInfo) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs of torch's tests that ask for what is refused, with the option that does."""
    if info.has_capturable_arg:
        # Torch's tests give them tensors on a GPU; the arguments are the same.
        asked = [each.kwargs for each in info.optim_inputs_func(device="cuda") if each.kwargs.get("capturable")]
        assert asked, f"{info.name} has inputs with capturable"
        yield from (("capturable", kwargs) for kwargs in asked)
    if "differentiable" in info.supported_impls:
        yield from (("differentiable", {**each.kwargs, "differentiable": True}) for each in inputs(info))


class Run:
    """One set of arguments, with torch's class and with ours."""

    def __init__(self, info: OptimizerInfo, given: OptimizerInput, dtype: torch.dtype, serve: Callable) -> None:
        assert given.params is None, "torch leaves the params to its tests"
        generator = torch.Generator().manual_seed(1)
        self.info = info
        self.theirs = [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in SHAPES]
        self.ours = [torch.nn.Parameter(p.detach().clone()) for p in self.theirs]
        self.inputs = torch.randn(3, 3, dtype=dtype, generator=generator)
        self.pair = (
            info.optim_cls(self.theirs, **deepcopy(given.kwargs)),
            serve(getattr(optd.torch, info.name), self.ours, **deepcopy(given.kwargs)),
        )

    def step(self) -> None:
        for (weight, bias), optimizer in zip((self.theirs, self.ours), self.pair, strict=True):

            def closure(weight=weight, bias=bias, optimizer=optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = (weight.mm(self.inputs) + bias).pow(2).sum()
                loss.backward()
                if self.info.only_supports_sparse_grads:
                    for each in (weight, bias):
                        each.grad = each.grad.to_sparse()
                return loss

            optimizer.step(closure)

    def check(self, tolerance: float) -> None:
        torch.testing.assert_close(self.ours, self.theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64], ids=str)
@EACH
def test_every_valid_set_of_arguments_trains_as_in_torch(info: OptimizerInfo, dtype: torch.dtype, serve) -> None:
    for given in inputs(info):
        run = Run(info, given, dtype, serve)
        for _ in range(STEPS):
            run.step()
        try:
            run.check((NEAR_THE_MINIMUM if info.step_requires_closure else TOLERANCE)[dtype])
        except AssertionError as error:
            raise AssertionError(f"{info.name} {given.desc!r} {given.kwargs}: {error}") from None
        run.pair[1].close()


@EACH
def test_what_no_server_can_do_is_refused_by_name(info: OptimizerInfo, where: dict[str, str]) -> None:
    for option, kwargs in refused_inputs(info):
        weight = torch.nn.Parameter(torch.ones(2, 3))
        with pytest.raises(InvalidOption, match=rf": {option} must be False \({REFUSED[option]}\), got True"):
            getattr(optd.torch, info.name)([weight], **kwargs, **where)
    with optd.connect(where["server"], job=where["job"]) as session, pytest.raises(optd.errors.UnknownJob):
        session.info()


def test_the_database_is_as_large_as_it_was() -> None:
    """And has all classes of torch that we stand for."""
    assert sum(len(list(inputs(info))) for info in optim_db) >= 91
    assert {info.name for info in optim_db} == set(optd.torch.algorithms.__all__) - set(NOT_IN_TORCH)
