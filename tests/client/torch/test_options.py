"""Options: which go to the server, which are torch's own business, and which a server cannot have."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import optd.torch
from optd.errors import InvalidOption, OptionConflict, OptionOutOfRange, UnknownOption


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


IMPLEMENTATIONS = [
    (name, option)
    for name in optd.torch.__all__
    for option in ("foreach", "fused")
    if option in inspect.signature(getattr(optd.torch, name)).parameters
]


@pytest.mark.parametrize(("name", "option"), IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [None, False, True])
def test_options_that_choose_torchs_implementation_are_accepted(
    name: str, option: str, value: bool | None, serve: Callable
) -> None:
    ours, theirs = weight(), weight()
    optimizer = serve(getattr(optd.torch, name), [ours], **{option: value})
    reference = getattr(torch.optim, name)([theirs], **{option: value})
    for _ in range(2):
        ours.grad, theirs.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found, expected = optimizer.state_dict(), reference.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(found["state"], expected["state"], rtol=1e-6, atol=1e-6)
    assert optimizer.param_groups[0][option] is value
    assert option not in optimizer.session.groups()[0].options.options


REFUSED = [
    (
        "SGD",
        "differentiable",
        True,
        "sgd: differentiable must be False (autograd does not reach into a server), got True",
    ),
    ("Adam", "capturable", True, "adam: capturable must be False (no graph can capture a step on a server), got True"),
    ("AdamW", "decoupled_weight_decay", False, "adamw: decoupled_weight_decay must be True (it is AdamW), got False"),
]
EACH_REFUSED = pytest.mark.parametrize(("name", "option", "value", "message"), REFUSED, ids=[row[1] for row in REFUSED])


@EACH_REFUSED
def test_options_that_a_server_cannot_have_are_refused(
    name: str, option: str, value: bool, message: str, serve: Callable
) -> None:
    def assert_refused(call: Callable[[], Any]) -> None:
        with pytest.raises(InvalidOption) as caught:
            call()
        assert str(caught.value) == message

    kind = getattr(optd.torch, name)
    if name != "AdamW":  # torch's AdamW has no such argument
        assert_refused(lambda: kind([weight()], server="nowhere", **{option: value}))
    assert_refused(lambda: kind([{"params": [weight()], option: value}], server="nowhere"))
    optimizer = serve(kind, [weight()])
    assert_refused(lambda: optimizer.add_param_group({"params": [weight()], option: value}))
    if name != "AdamW":  # torch's AdamW sets its own when it loads
        changed = optimizer.state_dict()
        changed["param_groups"][0][option] = value
        assert_refused(lambda: optimizer.load_state_dict(changed))
        assert optimizer.param_groups[0][option] is not value
    optimizer.param_groups[0][option] = value
    assert_refused(optimizer.step)
    assert_refused(optimizer.push)
    optimizer.param_groups[0][option] = not value
    optimizer.step()
    assert optimizer.version == 1


def test_fused_leaves_it_to_the_scaler_to_unscale(serve: Callable) -> None:
    def train(make: Callable[..., torch.optim.Optimizer]) -> torch.Tensor:
        trained = weight()
        optimizer, scaler = make([trained], lr=0.1, fused=True), torch.amp.GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale((trained * factor).square().sum()).backward()
            scaler.step(optimizer)  # leaves the step out where a gradient is infinite
            scaler.update()
        return trained.detach()

    ours = train(lambda *args, **kwargs: serve(optd.torch.SGD, *args, **kwargs))
    torch.testing.assert_close(ours, train(torch.optim.SGD))


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
