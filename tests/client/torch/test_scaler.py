"""A plain loop with `torch.amp.GradScaler`, and steps that torch compiles: as with the optimizers of torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.classes import CASES, Case, Optimizer, assert_same_weights, flat
from torch import nn

INF = float("inf")
# The scaler takes no closure; and the loss here has dense gradients.
SCALED = [case for case in CASES if not case.sparse and not case.needs_closure]
EACH = pytest.mark.parametrize("case", SCALED, ids=str)


class Loop:
    """An optimizer and a scaler, as in torch's recipes."""

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2, **options)
        self.norms: list[float] = []

    def step(self, factor: float, most: float | None = None) -> None:
        self.optimizer.zero_grad()
        loss = sum((parameter * factor).square().sum() for parameter in flat(self.optimizer))
        self.scaler.scale(loss).backward()
        if most is not None:
            self.scaler.unscale_(self.optimizer)
            self.norms.append(nn.utils.clip_grad_norm_(flat(self.optimizer), most).item())
        self.scaler.step(self.optimizer)
        self.scaler.update()


@EACH
@pytest.mark.parametrize("most", [None, 0.5], ids=["plain", "clipped"])
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
def test_a_loop_with_a_scaler(case: Case, most: float | None, enabled: bool, serve: Callable) -> None:
    theirs, ours = (Loop(optimizer, enabled=enabled) for optimizer in case.pair(serve))
    factors = (1.0, 2.0, INF, 1.0, 3.0) if enabled else (1.0, 2.0)
    scales = []
    for number, factor in enumerate(factors):
        for loop in (theirs, ours):
            loop.step(factor, most)
        assert ours.scaler.get_scale() == theirs.scaler.get_scale()
        assert_same_weights(ours.optimizer, theirs.optimizer)
        left_out = number >= 2
        assert ours.optimizer.version == number + 1 - left_out, "an infinite gradient is not pushed"
        scales.append(ours.scaler.get_scale())
    assert scales == ([1024, 2048, 1024, 1024, 2048] if enabled else [1, 1])
    torch.testing.assert_close(torch.tensor(ours.norms), torch.tensor(theirs.norms))
    assert ours.scaler.state_dict() == theirs.scaler.state_dict()


@pytest.mark.parametrize("case", [case for case in SCALED if case.has("fused")], ids=str)
def test_fused_leaves_it_to_the_scaler_to_unscale(case: Case, serve: Callable) -> None:
    """Which torch's fused kernels do themselves."""
    theirs, ours = (Loop(optimizer) for optimizer in case.pair(serve, fused=True))
    for factor in (1.0, INF, 2.0):
        for loop in (theirs, ours):
            loop.step(factor)
        assert ours.scaler.get_scale() == theirs.scaler.get_scale()
        assert_same_weights(ours.optimizer, theirs.optimizer)
    assert ours.optimizer.version == 2


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in SCALED if case.name in ("SGD", "Adam", "Adamax")], ids=str)
def test_a_step_that_torch_compiles(case: Case, serve: Callable) -> None:
    theirs, ours = case.pair(serve)
    compiled = torch.compile(ours.step, backend="eager")
    for _ in range(3):
        case.gradients(theirs, ours)
        theirs.step()
        compiled()
    assert ours.version == 3
    assert_same_weights(ours, theirs)
