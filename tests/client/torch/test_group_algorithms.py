"""Muon for the matrices and AdamW for the rest in one optimizer, beside one torch optimizer for each."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.mixed import EXACT, LANES, Block, Twins, as_default, assert_equal, groups_of, loss_of
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer


@LANES
@pytest.mark.parametrize("zero_copy", [False, True], ids=["copied", "zero_copy"])
def test_it_trains_as_two_optimizers_of_torch_do(make_mixed: Callable[..., Any], lane: str, zero_copy: bool) -> None:
    twins = Twins(lambda model: make_mixed(model, lane, zero_copy=zero_copy))
    schedulers = [
        LambdaLR(twins.optimizer, [lambda step: 0.9**step, lambda step: 1 / (1 + step)]),
        LambdaLR(twins.muon, lambda step: 0.9**step),
        LambdaLR(twins.adamw, lambda step: 1 / (1 + step)),
    ]
    for step in range(12):
        twins.step(step)
        twins.compare()
        for scheduler in schedulers:
            scheduler.step()
        assert twins.optimizer.version == step + 1, "one push is one version of all groups"
    assert_same_state(twins)


def assert_same_state(twins: Twins) -> None:
    """Equal in names, in their order, and in numbers."""
    for optimizer, (group, names) in zip(
        twins.beside, zip(twins.optimizer.param_groups, twins.ours.parts(), strict=True), strict=True
    ):
        assert group["param_names"] == list(names)
        for ours, theirs in zip(group["params"], optimizer.param_groups[0]["params"], strict=True):
            found, expected = twins.optimizer.state[ours], optimizer.state[theirs]
            assert list(found) == list(expected)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=EXACT, check_dtype=name != "step")


@LANES
def test_one_norm_bounds_the_gradient_of_all_groups(make_mixed: Callable[..., Any], lane: str) -> None:
    twins = Twins(lambda model: make_mixed(model, lane, gradients=optd.Gradients(clip_norm=0.3)))
    for step in range(6):
        twins.backward(step)
        norm = nn.utils.clip_grad_norm_(twins.theirs.parameters(), 0.3)
        twins.optimizer.step()
        for optimizer in twins.beside:
            optimizer.step()
        assert twins.optimizer.last.clipped
        torch.testing.assert_close(twins.optimizer.last.norm.gradient, norm.item(), rtol=EXACT, atol=EXACT)
        twins.compare()


@LANES
def test_pushes_add_up_in_all_groups(make_mixed: Callable[..., Any], lane: str) -> None:
    twins = Twins(lambda model: make_mixed(model, lane, gradients=optd.Gradients(accumulate=2)))
    for step in range(4):
        twins.ours.zero_grad()
        twins.theirs.zero_grad()
        for half in range(2):
            twins.ours.zero_grad()
            loss_of(twins.ours, 2 * step + half).backward()
            twins.optimizer.step()
            (loss_of(twins.theirs, 2 * step + half) / 2).backward()
        for optimizer in twins.beside:
            optimizer.step()
        assert twins.optimizer.version == step + 1
        twins.compare()


@pytest.mark.parametrize(
    "of_class",
    [
        lambda model, **where: optd.torch.Optimizer("adamw", as_default(model, 1), lr=3e-3, weight_decay=0.05, **where),
        lambda model, **where: optd.torch.AdamW(as_default(model, 1), lr=3e-3, weight_decay=0.05, **where),
        lambda model, **where: optd.torch.Muon(as_default(model, 0), lr=0.02, **where),
    ],
    ids=["by name", "AdamW", "Muon"],
)
def test_a_group_without_an_algorithm_has_the_default_one(where: dict[str, str], of_class: Callable[..., Any]) -> None:
    twins = Twins(lambda model: of_class(model, **where))
    for step in range(4):
        twins.step(step)
        twins.compare()
    assert [group["algorithm"] for group in twins.optimizer.param_groups] == ["muon", "adamw"]
    assert "momentum" not in twins.optimizer.param_groups[1]
    assert "betas" not in twins.optimizer.param_groups[0]
    loaded = copy.deepcopy(twins.optimizer.state_dict())
    twins.optimizer.load_state_dict(loaded)
    assert_equal(twins.optimizer.state_dict(), loaded)
    twins.step(4)
    twins.compare()
    twins.optimizer.close()


EVERYWHERE = {
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=4, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=3),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.8),
    "CyclicLR": lambda o: CyclicLR(o, 1e-3, 1e-2, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=0.01, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("scheduler", EVERYWHERE.values(), ids=EVERYWHERE)
def test_schedulers_of_torch_move_all_groups(make_mixed: Callable[..., Any], scheduler: Callable[..., Any]) -> None:
    twins = Twins(make_mixed)
    schedulers = [scheduler(each) for each in (twins.optimizer, *twins.beside)]
    for step in range(6):
        twins.step(step)
        twins.compare()
        for each in schedulers:
            each.step(*([1.0] if isinstance(each, ReduceLROnPlateau) else []))
    rates = [group["lr"] for group in twins.optimizer.param_groups]
    assert rates == [optimizer.param_groups[0]["lr"] for optimizer in twins.beside]


def test_a_scheduler_cycles_a_momentum_that_all_groups_have(where: dict[str, str]) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    groups = [{"params": [first], "algorithm": "muon"}, {"params": [second], "algorithm": "rmsprop", "momentum": 0.9}]
    optimizer = optd.torch.Optimizer(groups, **where)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    for _ in range(3):
        first.grad, second.grad = torch.ones(2, 2), torch.ones(3)
        optimizer.step()
        scheduler.step()
    optimizer.step()
    held = [group.options.options["momentum"] for group in optimizer.session.groups()]
    assert held[0] == held[1] == optimizer.param_groups[0]["momentum"] != 0.95
    optimizer.close()


def test_a_scheduler_refuses_to_cycle_a_momentum_that_some_groups_lack(make_mixed: Callable[..., Any]) -> None:
    optimizer = make_mixed(Block())
    with pytest.raises(ValueError, match="optimizer must support momentum or beta1"):
        OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    assert set(optimizer.defaults) == {"lr", "weight_decay", "eps"}


def test_a_group_is_added_with_its_algorithm(serve: Callable[..., Any]) -> None:
    first, second, third = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    optimizer = serve(optd.torch.AdamW, [first], lr=0.1)
    assert "algorithm" not in optimizer.param_groups[0]
    optimizer.add_param_group({"params": [second], "algorithm": "muon", "lr": 0.5})
    optimizer.add_param_group({"params": [third], "name": "third"})
    assert [group["algorithm"] for group in optimizer.param_groups] == ["adamw", "muon", "adamw"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.1]
    for parameter in (first, second, third):
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert [set(optimizer.state[each]) for each in (first, second)] == [
        {"step", "exp_avg", "exp_avg_sq"},
        {"momentum_buffer"},
    ]
    torch.testing.assert_close(first, third, rtol=0, atol=0)
    with pytest.raises(errors.UnservedShape, match="muon: parameter 'param3' must have 2 dimensions"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "algorithm": "muon"})
    assert len(optimizer.param_groups) == 3
    optimizer.step()


def test_another_worker_attaches_with_the_same_algorithms(make_mixed: Callable[..., Any], server: LocalServer) -> None:
    model = Block()
    optimizer = make_mixed(model)
    loss_of(model, 0).backward()
    optimizer.step()
    other = Block()
    make_mixed(other, job=optimizer.session.job, worker="w1")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    wrong = groups_of(Block())
    wrong[1] = {**wrong[1], "algorithm": "adam"}
    text = "in group 'group1' algorithm 'adamw', this registration has 'adam'"
    with pytest.raises(errors.JobMismatch, match=text):
        optd.torch.Optimizer(wrong, server=server.address, job=optimizer.session.job, worker="w2")


def test_options_of_every_group_reach_every_group(serve: Callable[..., Any]) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    groups = [{"params": [first], "algorithm": "muon"}, {"params": [second], "clip_norm": 2.0}]
    optimizer = serve(optd.torch.AdamW, groups, lr=0.5, clip_norm=1.0, lr_schedule="constant()")
    held = [group.options.options for group in optimizer.session.groups()]
    assert [options["clip_norm"] for options in held] == [1.0, 2.0]
    assert [options["lr_schedule"] for options in held] == ["constant()", "constant()"]
    assert [options["lr"] for options in held] == [0.001, 0.5], "lr is an option of adamw, the default algorithm"


def test_dicts_that_an_optimizer_has_completed_go_into_another_one(serve: Callable[..., Any]) -> None:
    model = Block()
    groups = as_default(model, 1)
    serve(optd.torch.AdamW, groups, lr=3e-3)
    again = serve(optd.torch.Optimizer, "adamw", groups)
    assert [(group["algorithm"], group["lr"]) for group in again.param_groups] == [("muon", 0.02), ("adamw", 3e-3)]
