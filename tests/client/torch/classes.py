"""Every class of `optd.torch` beside the one that it stands for: what tests of all classes go over.

A class joins by being exported; what is special about it has a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.server.optim.delayed_nesterov import DelayedNesterov
from tests.server.optim.lion import Lion
from torch import nn

import optd.torch

Optimizer = torch.optim.Optimizer
Shapes = tuple[tuple[int, ...], ...]

NOT_IN_TORCH: dict[str, type[Any]] = {"Lion": Lion, "DelayedNesterov": DelayedNesterov}
"""Our references of the classes that torch lacks."""


@dataclass(frozen=True)
class Case:
    """A class, and what it can train."""

    name: str
    defaults: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[Shapes, ...] = (((3, 2), ()), ((4,), (2, 2)))
    """Of the parameters of each group."""
    dtype: torch.dtype = torch.float64
    """Of the parameters."""
    sparse: bool = False
    """Whether it takes sparse gradients only."""
    needs_closure: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def theirs(self) -> type[Any]:
        return NOT_IN_TORCH.get(self.name) or getattr(torch.optim, self.name)

    @property
    def ours(self) -> type[Any]:
        return getattr(optd.torch, self.name)

    def has(self, option: str) -> bool:
        """Whether torch's class has an option."""
        return option in self.theirs(self.parameters()[0]).defaults

    def parameters(self) -> list[list[nn.Parameter]]:
        """Equal ones each time, by group."""
        generator = torch.Generator().manual_seed(1)
        return [
            [nn.Parameter(torch.randn(shape, dtype=self.dtype, generator=generator)) for shape in group]
            for group in self.shapes
        ]

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": parameters} for parameters in self.parameters()]

    def pair(self, serve: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
        """The same optimizer twice, torch's and ours, with parameters of their own."""
        given = {**self.defaults, **options}
        return self.theirs(self.groups(), **given), serve(self.ours, self.groups(), **given)

    def gradients(self, *optimizers: Optimizer) -> None:
        """Gives the parameters of all the same random gradients."""
        for parameters in zip(*map(flat, optimizers), strict=True):
            gradient = torch.randn(parameters[0].shape, dtype=parameters[0].dtype)
            for parameter in parameters:
                # With the strides of the parameter, as autograd makes them: torch's fused kernels rely on it.
                own = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
                parameter.grad = own.to_sparse(1) if self.sparse else own

    def step(self, *optimizers: Optimizer) -> None:
        """A step of all with the same gradients."""
        self.gradients(*optimizers)
        for optimizer in optimizers:
            if self.needs_closure:
                optimizer.step(lambda: 1.0)
            else:
                optimizer.step()


SPECIAL = {
    case.name: case
    for case in [
        Case("Muon", shapes=(((3, 2),), ((2, 2),))),
        Case("LBFGS", shapes=(((3, 2), (), (4,)),), needs_closure=True),
        Case("SparseAdam", shapes=(((3, 2),), ((4,), (2, 2))), sparse=True),
        Case("Adafactor", {"lr": 0.01}),
        # Their numbers for a parameter are float32, here always, in torch until it loads them beside other parameters.
        Case("NAdam", dtype=torch.float32),
        Case("ASGD", dtype=torch.float32),
    ]
}
CASES = [SPECIAL.get(name, Case(name)) for name in optd.torch.algorithms.__all__]
EACH = pytest.mark.parametrize("case", CASES, ids=str)


def flat(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def assert_same_weights(ours: Optimizer, theirs: Optimizer) -> None:
    tolerance = TOLERANCE[flat(theirs)[0].dtype]
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=tolerance, atol=tolerance)


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal in structure, types, devices and strides, and in numbers to what the two arithmetics round differently."""
    assert list(ours) == list(theirs)
    assert ours["param_groups"] == theirs["param_groups"]
    for found, expected in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert list(found) == list(expected)
        assert list(map(type, found.values())) == list(map(type, expected.values()))
    assert list(ours["state"]) == list(theirs["state"])
    for index, expected in theirs["state"].items():
        found = ours["state"][index]
        # LBFGS puts "al" where its first step has needed it, or behind the rest.
        names = [[name for name in state if name != "al"] for state in (found, expected)]
        assert names[0] == names[1]
        assert ("al" in found) == ("al" in expected)
        # SparseAdam counts its steps in an int, and LBFGS may have nothing but numbers.
        dtypes = [each.dtype for each in expected.values() if isinstance(each, torch.Tensor)]
        tolerance = max((TOLERANCE[dtype] for dtype in dtypes), default=0.0)
        for name, value in expected.items():
            assert_same_value(found[name], value, tolerance)


def assert_same_value(found: Any, expected: Any, tolerance: float) -> None:
    """Of a state: a tensor, a number, or a list of such and of None."""
    # A learning rate of 1 makes LBFGS keep an int, where a server has floats.
    assert type(found) is type(expected) or found == expected
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same_value(*pair, tolerance)
    elif expected is not None:
        strides = isinstance(expected, torch.Tensor)
        how = {"check_stride": strides, "check_dtype": strides}
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, **how)
        assert not strides or found.requires_grad == expected.requires_grad
