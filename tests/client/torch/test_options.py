"""Options: which go to the server, which are torch's own business, and which a server cannot have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.classes import CASES, EACH, Case, assert_same_state, assert_same_weights, flat
from torch import nn

import optd.torch
from optd.errors import DeadlineExceeded, InvalidOption, OptionConflict, OptionOutOfRange, UnknownOption
from optd_wire.values import GroupUpdate


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


# What torch's classes have to choose how they compute; and why a server refuses those that it cannot follow.
IMPLEMENTATION = {
    "foreach": None,
    "fused": None,
    "capturable": "no graph can capture a step on a server",
    "differentiable": "autograd does not reach into a server",
}
ACCEPTED = [
    (case, option, value)
    for case in CASES
    for option, why in IMPLEMENTATION.items()
    for value in (None, False, True)
    if not (value and why and case.has(option))
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "option", "value"), ACCEPTED, ids=str)
def test_options_that_choose_torchs_implementation_change_nothing(
    case: Case, option: str, value: bool | None, serve: Callable
) -> None:
    """As arguments, as entries of a group, and when they are changed later; whether torch's class has them or not."""
    given = {option: value} if case.has(option) else {}
    groups, others = ([*case.groups()[:-1], {**case.groups()[-1], option: value}] for _ in range(2))
    ours = serve(case.ours, groups, **case.defaults, **given)
    # None is as good as False in the groups of torch, but not in all of its constructors.
    theirs = case.theirs(others, **case.defaults, **dict.fromkeys(given, bool(value)))
    case.step(theirs, ours)
    assert_same_weights(ours, theirs)
    for optimizer in (theirs, ours):
        optimizer.param_groups[0][option] = value
    assert_same_state(ours.state_dict(), theirs.state_dict())
    for optimizer in (theirs, ours):
        optimizer.load_state_dict(optimizer.state_dict())
    case.step(theirs, ours)
    assert_same_weights(ours, theirs)
    assert ours.param_groups[0][option] is value
    assert all(option not in group.options.options for group in ours.session.groups())
    if len(case.shapes) > 1:
        added = [nn.Parameter(parameter.detach().clone()) for parameter in flat(ours)[:1]]
        ours.add_param_group({"params": added, option: value})
        assert ours.param_groups[-1][option] is value


def assert_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        call()
    assert str(caught.value) == message


def changes(case: Case, serve: Callable, option: str, value: bool, message: str) -> None:
    """A value that is refused in a group, when it is loaded, and in mid-training."""
    groups = case.groups()
    groups[-1][option] = value
    assert_refused(lambda: case.ours(groups, server="nowhere", **case.defaults), message)
    ours = serve(case.ours, case.groups(), **case.defaults)
    if len(case.shapes) > 1:
        assert_refused(lambda: ours.add_param_group({"params": case.parameters()[0], option: value}), message)
        assert len(ours.param_groups) == len(ours.session.groups()) == len(case.shapes)
    ours.param_groups[0][option] = value
    assert_refused(lambda: case.step(ours), message)
    if not case.needs_closure:
        assert_refused(ours.push, message)
    assert ours.version == 0
    ours.param_groups[0][option] = not value
    case.step(ours)


@EACH
@pytest.mark.parametrize("option", [option for option, why in IMPLEMENTATION.items() if why])
def test_options_that_a_server_cannot_follow_are_refused(case: Case, option: str, serve: Callable) -> None:
    if not case.has(option):
        for kind, where in ((case.theirs, {}), (case.ours, {"server": "nowhere"})):
            with pytest.raises(TypeError, match=option):
                kind(case.groups(), **case.defaults, **{option: True}, **where)
        return
    message = f"{case.ours.algorithm}: {option} must be False ({IMPLEMENTATION[option]}), got True"
    assert_refused(lambda: case.ours(case.groups(), server="nowhere", **case.defaults, **{option: True}), message)
    changes(case, serve, option, True, message)
    ours = serve(case.ours, case.groups(), **case.defaults)
    changed = ours.state_dict()
    changed["param_groups"][0][option] = True
    assert_refused(lambda: ours.load_state_dict(changed), message)
    assert ours.param_groups[0][option] is False


def test_adamw_decouples_weight_decay(serve: Callable) -> None:
    message = "adamw: decoupled_weight_decay must be True (it is AdamW), got False"
    changes(next(case for case in CASES if case.name == "AdamW"), serve, "decoupled_weight_decay", False, message)


def test_decoupled_weight_decay_is_an_option_of_adam(serve: Callable) -> None:
    ours, theirs = weight(), weight()
    options = {"lr": 0.1, "weight_decay": 0.5, "decoupled_weight_decay": True}
    optimizer, reference = (
        serve(optd.torch.Adam, [ours], **options),
        torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.5),
    )
    for _ in range(3):
        ours.grad, theirs.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert optimizer.session.groups()[0].options.options["decoupled_weight_decay"] is True


def test_tensors_as_options(serve: Callable) -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    options = {
        "lr": torch.tensor(0.1, dtype=torch.float64),
        "betas": (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)),
    }
    optimizer, reference = serve(optd.torch.Adam, [ours], **options), torch.optim.Adam([theirs], **options)
    for _ in range(3):
        ours.grad, theirs.grad = torch.ones_like(ours), torch.ones_like(theirs)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert optimizer.param_groups[0]["lr"] is options["lr"]
    assert optimizer.session.groups()[0].options.options["betas"] == (0.8, 0.9)


@EACH
def test_an_lr_of_torchs_default_dtype(case: Case, serve: Callable) -> None:
    """With which torch computes in float32, where it is a tensor."""
    theirs, ours = case.pair(serve, lr=torch.tensor(0.01))
    for _ in range(3):
        case.step(theirs, ours)
        ours.param_groups[0]["lr"].mul_(0.5)  # the tensor of all groups of both
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-6, atol=1e-6)
    assert ours.session.groups()[-1].options.options["lr"] == torch.tensor(0.01).mul(0.25).item()


def test_entries_that_are_no_options_stay_in_the_group(serve: Callable) -> None:
    optimizer = serve(optd.torch.SGD, [{"params": [weight()], "lr_scale": 0.5, "max_momentum": 1, "tags": {"a"}}])
    optimizer.param_groups[0]["initial_lr"] = 7
    optimizer.step()
    optimizer.pull()
    group = optimizer.param_groups[0]
    assert [group[name] for name in ("lr_scale", "max_momentum", "tags", "initial_lr")] == [0.5, 1, {"a"}, 7]
    assert set(optimizer.session.groups()[0].options.options) == {
        "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize",
    }  # fmt: skip


@pytest.mark.parametrize(("slip", "option"), [("weigth_decay", "weight_decay"), ("momentun", "momentum")])
def test_a_slip_of_the_pen_in_a_group_is_not_lost(serve: Callable, slip: str, option: str) -> None:
    """Torch takes any entry, and trains without it."""
    with pytest.raises(UnknownOption, match=f"sgd: no option '{slip}'; did you mean '{option}'"):
        serve(optd.torch.SGD, [{"params": [weight()], slip: 0.5}])


def test_param_groups_have_the_values_that_torch_would_have(serve: Callable) -> None:
    arguments = [{"params": [weight()], "momentum": 0, "lr": 1}, {"params": [weight()], "weight_decay": 0}]
    ours = serve(optd.torch.SGD, [dict(group) for group in arguments], lr=0.5)
    theirs = torch.optim.SGD([dict(group) for group in arguments], lr=0.5)
    assert repr(ours) == repr(theirs), "not even an int has become a float"


def test_an_option_that_the_server_refuses_stops_the_step_and_nothing_has_changed(serve: Callable) -> None:
    trained = weight()
    optimizer = serve(optd.torch.SGD, [trained], lr=0.1)
    trained.grad = torch.ones(3)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(OptionOutOfRange, match=r"sgd: lr must be in \[0, inf\), got -1"):
        optimizer.step()
    assert trained.tolist() == [1, 1, 1]
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert (trained.tolist(), optimizer.version) == ([0, 0, 0], 1)


def test_two_workers_that_change_one_option(where: dict[str, str]) -> None:
    with (
        optd.torch.SGD([weight()], lr=0.1, **where) as one,
        optd.torch.SGD([weight()], **{**where, "worker": "w1"}) as two,
    ):
        one.param_groups[0]["lr"] = 0.2
        one.step()
        two.param_groups[0]["lr"] = 0.3
        with pytest.raises(OptionConflict, match=r"'group0': lr was to become 0\.3, but it has been changed to 0\.2"):
            two.step()
        two.pull()
        two.step()
        one.step()
        assert one.param_groups[0]["lr"] == two.param_groups[0]["lr"] == 0.3


def test_changes_of_different_options_do_not_conflict(where: dict[str, str]) -> None:
    with (
        optd.torch.SGD([weight()], lr=0.1, momentum=0.9, **where) as one,
        optd.torch.SGD([weight()], **{**where, "worker": "w1"}) as two,
    ):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(one, 0.5)
        for decay in (0.1, 0.2):
            one.step()
            scheduler.step()
            two.param_groups[0]["weight_decay"] = decay
            two.step()
            two.session.update_group(GroupUpdate("group0", {"dampening": decay}, None))
        one.step()
        (group,) = one.session.groups()
        found = {name: group.options.options[name] for name in ("lr", "weight_decay", "dampening")}
        assert found == {"lr": 0.025, "weight_decay": 0.2, "dampening": 0.2}
        assert one.session.rejections() == ({}, ())
        # But of one that was changed long ago, too, an older copy does not win.
        two.param_groups[0]["lr"] = 0.7
        one.param_groups[0]["lr"] = 0.6
        one.step()
        one.param_groups[0]["dampening"] = 0.0
        one.step()
        with pytest.raises(
            OptionConflict, match=r"lr was to become 0\.7, but it has been changed to 0\.6 at version 5"
        ):
            two.step()


def step_whose_answer_is_lost(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is applied, and the worker does not hear of it."""

    def lost(*_: Any) -> None:
        raise DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    lane = optimizer.session._lane
    real = lane.step
    with monkeypatch.context() as patched:
        patched.setattr(lane, "step", lambda *args, **kwargs: lost(real(*args, **kwargs)))
        with pytest.raises(DeadlineExceeded):
            optimizer.step()


def test_a_change_whose_answer_was_lost_is_the_workers_own(
    where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scheduler goes on meanwhile; but what somebody else changes is a conflict all the same."""
    with optd.torch.SGD([weight()], lr=1.0, **where) as optimizer:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.step()
        scheduler.step()
        step_whose_answer_is_lost(optimizer, monkeypatch)
        scheduler.step()
        optimizer.step()
        assert optimizer.session.groups()[0].options.options["lr"] == 0.25
        assert optimizer.version == 3
        scheduler.step()
        step_whose_answer_is_lost(optimizer, monkeypatch)
        optimizer.session.update_group(GroupUpdate("group0", {"lr": 9.0}, None))
        scheduler.step()
        with pytest.raises(OptionConflict, match=r"lr was to become 0\.0625, but it has been changed to 9"):
            optimizer.step()


def test_a_groups_own_beginning_of_adagrads_sum_is_ignored_as_in_torch_but_told(serve: Callable) -> None:
    name = "initial_accumulator_value"
    ours, theirs = weight(), weight()
    with pytest.warns(UserWarning, match="initial_accumulator_value is that of all groups, 1.0, as in torch"):
        optimizer = serve(optd.torch.Adagrad, [{"params": [ours], name: 3.0}], **{name: 1.0})
    reference = torch.optim.Adagrad([{"params": [theirs], name: 3.0}], **{name: 1.0})
    assert optimizer.param_groups[0][name] == 1.0
    ours.grad, theirs.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"betas": (torch.tensor(0.5), torch.tensor(0.75))}),
        ("AdamW", {"betas": (torch.tensor(0.5), torch.tensor(0.75))}),
        ("SGD", {"weight_decay": torch.tensor(0.5)}),
    ],
)
def test_options_besides_lr_may_be_tensors_where_torchs_may(name: str, options: dict, serve: Callable) -> None:
    ours, theirs = weight(), weight()
    optimizer = serve(getattr(optd.torch, name), [ours], lr=torch.tensor(0.25), **options)
    reference = getattr(torch.optim, name)([theirs], lr=torch.tensor(0.25), **options)
    for _ in range(2):
        ours.grad, theirs.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
