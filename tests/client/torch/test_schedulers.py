"""Every scheduler of torch moves the options on the server: the same steps with torch's optimizer and with ours."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tests.client.torch.classes import EACH, Case, assert_same_weights
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

import optd.torch

STEPS = 24
Optimizer = torch.optim.Optimizer


class Row(NamedTuple):
    kind: type[Any]
    make: Callable[[Optimizer], Any]
    algorithm: str = "SGD"


TABLE = [
    Row(LambdaLR, lambda o: LambdaLR(o, [lambda e: 0.95**e, lambda e: 1 / (1 + e)])),
    Row(MultiplicativeLR, lambda o: MultiplicativeLR(o, lambda e: 0.9)),
    Row(StepLR, lambda o: StepLR(o, 5)),
    Row(MultiStepLR, lambda o: MultiStepLR(o, [3, 9, 12])),
    Row(ConstantLR, lambda o: ConstantLR(o, factor=0.5, total_iters=7)),
    Row(LinearLR, lambda o: LinearLR(o, start_factor=0.1, total_iters=9), "Adam"),
    Row(ExponentialLR, lambda o: ExponentialLR(o, 0.9), "AdamW"),
    Row(PolynomialLR, lambda o: PolynomialLR(o, total_iters=15, power=2.0)),
    Row(CosineAnnealingLR, lambda o: CosineAnnealingLR(o, T_max=10, eta_min=1e-4)),
    Row(CosineAnnealingWarmRestarts, lambda o: CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2)),
    Row(CyclicLR, lambda o: CyclicLR(o, 1e-3, 0.1, step_size_up=4)),
    Row(CyclicLR, lambda o: CyclicLR(o, 1e-3, 0.1, step_size_up=4, base_momentum=[0.5, 0.6], max_momentum=[0.8, 0.7])),
    Row(CyclicLR, lambda o: CyclicLR(o, 1e-3, 0.1, step_size_up=4, mode="exp_range", gamma=0.9), "AdamW"),
    Row(CyclicLR, lambda o: CyclicLR(o, [1e-3, 1e-2], [0.1, 0.2], step_size_up=3, cycle_momentum=False)),
    Row(OneCycleLR, lambda o: OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=STEPS)),
    Row(OneCycleLR, lambda o: OneCycleLR(o, max_lr=0.1, total_steps=STEPS, three_phase=True), "Adam"),
    Row(OneCycleLR, lambda o: OneCycleLR(o, 0.1, STEPS, cycle_momentum=False, anneal_strategy="linear"), "Adamax"),
    Row(ReduceLROnPlateau, lambda o: ReduceLROnPlateau(o, factor=0.5, patience=2)),
    Row(
        SequentialLR,
        lambda o: SequentialLR(o, [LinearLR(o, total_iters=4), ExponentialLR(o, 0.8), StepLR(o, 2)], [5, 14]),
    ),
    Row(ChainedScheduler, lambda o: ChainedScheduler([ConstantLR(o, total_iters=6), ExponentialLR(o, 0.9)])),
    Row(SWALR, lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=8)),
]


def test_every_scheduler_of_torch_has_a_row() -> None:
    found = {
        kind
        for module in (lr_scheduler, swa_utils)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler)
    }
    bases = {lr_scheduler.LRScheduler, lr_scheduler._LRScheduler}
    assert {row.kind for row in TABLE} == found - bases


@pytest.mark.parametrize(
    "tensors", [pytest.param(False, id="floats"), pytest.param(True, id="tensors", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.kind.__name__}-{row.algorithm}")
def test_a_scheduler_moves_the_options_of_the_server(row: Row, tensors: bool, serve: Callable) -> None:
    """With `tensors`, schedulers change the lr in place."""
    options: dict[str, Any] = {"momentum": 0.9} if row.algorithm == "SGD" else {}
    theirs, ours = (
        make(groups(tensors), lr=lr(0.05, tensors), **options)
        for make in (
            getattr(torch.optim, row.algorithm),
            lambda *args, **kwargs: serve(getattr(optd.torch, row.algorithm), *args, **kwargs),
        )
    )
    schedulers = [row.make(theirs), row.make(ours)]
    known: list[set[float]] = [set(), set()]
    for number in range(STEPS):
        for there, here in pairs(theirs, ours):
            there.grad = torch.randn_like(there)
            here.grad = there.grad.clone()
        theirs.step()
        ours.step()
        assert_same_options(theirs, ours)
        assert_same_weights(ours, theirs)
        for group, summary in zip(ours.param_groups, ours.session.groups(), strict=True):
            served = summary.options.options
            assert served == {name: plain(group[name]) for name in served}, f"after step {number}"
            known[summary.index].add(served["lr"])
        for scheduler in schedulers:
            # A metric that stops improving makes ReduceLROnPlateau act.
            scheduler.step(*([min(number, 5)] if row.kind is ReduceLROnPlateau else []))
        assert_same_options(theirs, ours)
    assert all(len(seen) > 1 for seen in known), "the schedule of this row moves nothing"
    assert isinstance(ours.param_groups[0]["lr"], torch.Tensor) == tensors
    assert list(map(list, ours.param_groups)) == list(map(list, theirs.param_groups))


@EACH
def test_a_schedule_moves_every_class(case: Case, serve: Callable) -> None:
    """With the momentum, or the first of the betas, where there is one."""
    theirs, ours = case.pair(serve)
    cycled = case.has("momentum") or case.has("betas")
    schedulers = [OneCycleLR(o, max_lr=0.01, total_steps=6, cycle_momentum=cycled) for o in (theirs, ours)]
    for number in range(6):
        case.step(theirs, ours)
        assert_same_options(theirs, ours)
        assert_same_weights(ours, theirs)
        for group, summary in zip(ours.param_groups, ours.session.groups(), strict=True):
            served = summary.options.options
            assert served == {name: group[name] for name in served}
        for scheduler in schedulers if number < 5 else []:
            scheduler.step()


def lr(value: float, tensors: bool) -> Any:
    return torch.tensor(value, dtype=torch.float64) if tensors else value


def plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def groups(tensors: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in [(3, 2), (4,), (5,)]]
    first, second, third = (torch.nn.Parameter(weight) for weight in weights)
    return [{"params": [first, second]}, {"params": [third], "lr": lr(0.02, tensors), "note": "kept"}]


def pairs(theirs: Optimizer, ours: Optimizer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = zip(theirs.param_groups, ours.param_groups, strict=True)
    return [pair for there, here in rows for pair in zip(there["params"], here["params"], strict=True)]


def assert_same_options(theirs: Optimizer, ours: Optimizer) -> None:
    for there, here in zip(theirs.param_groups, ours.param_groups, strict=True):
        assert {**here, "params": None} == {**there, "params": None}
        assert {name: type(value) for name, value in here.items()} == {name: type(there[name]) for name in there}


def test_a_scheduler_moves_an_lr_that_is_a_tensor(serve: Callable) -> None:
    ours = serve(optd.torch.SGD, groups(), lr=torch.tensor(0.05, dtype=torch.float64))
    lr = ours.param_groups[0]["lr"]
    scheduler = StepLR(ours, 1, gamma=0.5)
    for expected in (0.05, 0.025, 0.0125):
        ours.step()
        assert ours.session.groups()[0].options.options["lr"] == expected
        scheduler.step()
    assert ours.param_groups[0]["lr"] is lr, "torch moves the tensor itself"


def test_a_scheduler_goes_on_from_its_state_dict(serve: Callable) -> None:
    ours = serve(optd.torch.SGD, groups(), lr=0.05, momentum=0.9)
    scheduler = CosineAnnealingLR(ours, T_max=10)
    for _ in range(4):
        ours.step()
        scheduler.step()
    saved = ours.state_dict(), scheduler.state_dict()
    other = serve(optd.torch.SGD, groups(), lr=0.05, momentum=0.9)
    resumed = CosineAnnealingLR(other, T_max=10)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(3):
        for optimizer, following in ((ours, scheduler), (other, resumed)):
            optimizer.step()
            following.step()
        assert_same_options(ours, other)
    assert [g.options.options for g in other.session.groups()] == [g.options.options for g in ours.session.groups()]
