"""Rules for names through a server: as if each parameter had a group of its own, in both faces, changed and shown."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd import schedules
from optd.local import LocalServer
from optd_wire import errors
from optd_wire.values import GroupUpdate

RULES: list[dict[str, Any]] = [
    {"match": "*.bias", "weight_decay": 0.0},
    {"match": "norm.*", "weight_decay": 0.0, "lr": 0.05},
    {"match": "norm.bias", "lr": 0.5, "lr_schedule": schedules.Exponential(gamma=0.5)},
]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.double()


def torchs(model: Model, cls: type, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An optimizer of torch with a group for each parameter, under the rules; and each one's group."""
    own = {
        "first.bias": {"weight_decay": 0.0},
        "last.bias": {"weight_decay": 0.0},
        "norm.weight": {"weight_decay": 0.0, "lr": 0.05},
        "norm.bias": {"weight_decay": 0.0, "lr": 0.5},
    }
    groups = [{"params": [parameter], **own.get(name, {})} for name, parameter in model.named_parameters()]
    optimizer = cls(groups, **options)
    names = [name for name, _ in model.named_parameters()]
    return optimizer, dict(zip(names, optimizer.param_groups, strict=True))


@pytest.mark.parametrize(
    ("name_of", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ("AdamW", {"lr": 0.1, "weight_decay": 0.1}),
        ("NAdam", {"lr": 0.1, "weight_decay": 0.1}),
        ("Adafactor", {"lr": 0.1, "weight_decay": 0.1}),
    ],
)
def test_every_algorithm_follows_them(server: LocalServer, name: str, name_of: str, options: dict[str, Any]) -> None:
    theirs, ours, arrays = Model(), Model(), {k: p.detach().numpy().copy() for k, p in Model().named_parameters()}
    reference, groups = torchs(theirs, getattr(torch.optim, name_of), **options)
    with (
        optd.connect(server.address, job=f"{name}-torch") as session,
        optd.connect(server.address, job=f"{name}-numpy") as other,
    ):
        optimizer = getattr(optd.torch, name_of)(ours.named_parameters(), session=session, rules=RULES, **options)
        numpys = getattr(optd, name_of)(arrays, session=other, rules=RULES, **options)
        assert len(optimizer.param_groups) == len(numpys.param_groups) == 1
        for step in range(6):
            groups["norm.bias"]["lr"] = 0.5 * 0.5**step
            gradients = {key: torch.randn_like(parameter) for key, parameter in theirs.named_parameters()}
            if step == 3:
                gradients.pop("last.bias")
            for model in (theirs, ours):
                for key, parameter in model.named_parameters():
                    parameter.grad = gradients.get(key)
            reference.step()
            optimizer.step()
            numpys.step({key: gradient.numpy() for key, gradient in gradients.items()})
        rtol = 1e-12 if name_of != "NAdam" else 1e-9
        for (key, expected), found in zip(theirs.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)
            np.testing.assert_array_equal(arrays[key], found.detach().numpy())
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        assert saved["param_groups"][0]["rules"] == numpys.param_groups[0]["rules"]


def test_state_that_only_a_rule_needs_is_there_and_planned_for(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        arrays = {"w": np.ones(3), "b": np.ones(2)}
        optimizer = optd.SGD(arrays, lr=0.1, rules=[{"match": "w", "momentum": 0.9}], session=session)
        for _ in range(2):
            optimizer.step({"w": np.ones(3), "b": np.ones(2)})
        state = optimizer.state_dict()["state"]
        assert "momentum_buffer" in state[0]
        assert "momentum_buffer" not in state.get(1, {})
        np.testing.assert_allclose(arrays["w"], 1 - 0.1 - 0.19)
        np.testing.assert_allclose(arrays["b"], 0.8)


def optctl(server: LocalServer, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "optd.ctl", *arguments]
    environment = {**os.environ, "OPTD_SERVER": server.address}
    environment.pop("COLUMNS", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_they_are_changed_in_mid_training_and_shown(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        arrays = {"w": np.zeros(1), "b": np.zeros(1)}
        optimizer = optd.SGD(arrays, lr=1.0, session=session)
        optimizer.step({"w": np.ones(1), "b": np.ones(1)})
        done = optctl(server, "set", name, "group0", 'rules=[{"match": "b", "lr": 0.25}]')
        assert (done.returncode, done.stderr) == (0, "")
        optimizer.step({"w": np.ones(1), "b": np.ones(1)})
        assert (arrays["w"][0], arrays["b"][0]) == (-2, -1.25)
        assert optimizer.param_groups[0]["rules"] == '[{"match": "b", "lr": 0.25}]'
        weight, bias = session.parameters("group0")
        assert (weight.overrides, bias.overrides) == ({}, {"lr": 0.25})
        shown = optctl(server, "group", name, "group0").stdout
        assert "by rules" in shown
        assert "lr=0.25" in shown
        assert "by rules: lr=0.25" in optctl(server, "group", name, "group0", "-p", "b").stdout
        optimizer.param_groups[0]["rules"] = []
        optimizer.step({"w": np.ones(1), "b": np.ones(1)})
        assert (arrays["w"][0], arrays["b"][0]) == (-3, -2.25)


Make = Callable[[optd.Session], Any]
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "matches nothing": (
        {"match": "*.bais", "lr": 1},
        errors.RuleMatchesNothing,
        "no parameter matches the rule for '*.bais'; there are such as fc.bias",
    ),
    "an unknown option": (
        {"match": "fc.bias", "weight_deca": 0},
        errors.UnknownOption,
        "sgd: no option 'weight_deca'; did you mean 'weight_decay'?",
    ),
    "out of range": (
        {"match": "fc.bias", "lr": -1},
        errors.OptionOutOfRange,
        "sgd: lr must be in [0, inf), got -1",
    ),
    "of a whole group": (
        {"match": "fc.bias", "clip_norm": 1},
        errors.InvalidRule,
        "the rule for 'fc.bias': clip_norm is of a whole group, not of some parameters",
    ),
    "no pattern": ({"lr": 1}, errors.InvalidOption, "sgd: rules must be rules that each have a pattern"),
}


@pytest.mark.parametrize(("rule", "error", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_one_is_said_at_once(
    server: LocalServer, name: str, rule: dict[str, Any], error: type[Exception], says: str
) -> None:
    with optd.connect(server.address, job=name) as session:
        arrays = {"fc.bias": np.ones(2), "fc.weight": np.ones(3)}
        with pytest.raises(error) as caught:
            optd.SGD(arrays, rules=[rule], session=session)
        assert str(caught.value).startswith(says)
        optimizer = optd.SGD(arrays, session=session)
        optimizer.param_groups[0]["rules"] = [rule]
        with pytest.raises(error):
            optimizer.step({"fc.bias": np.ones(2)})
        assert session.groups()[0].options.revision == 0


def test_a_rule_for_all_groups_need_match_in_one_only(server: LocalServer, name: str) -> None:
    ones = {"body": np.ones(1), "bias": np.ones(1)}
    with optd.connect(server.address, job=name) as session:
        groups = [{"params": {"body": np.zeros(1)}}, {"params": {"bias": np.zeros(1)}}]
        optimizer = optd.SGD(groups, lr=1.0, rules=[{"match": "bias", "lr": 0.5}], session=session)
        optimizer.step(ones)
        assert [group["params"][0].tolist() for group in optimizer.param_groups] == [[-1], [-0.5]]
        # The rules stay as they are, and so do their matches.
        optimizer.param_groups[0]["lr"] = 2.0
        optimizer.step(ones)
        for group in optimizer.param_groups:
            group["rules"] = [{"match": "b?dy", "lr": 0.25}]
        optimizer.step(ones)
        assert [group["params"][0].tolist() for group in optimizer.param_groups] == [[-3.25], [-2]]
        with pytest.raises(errors.RuleMatchesNothing, match=r"'b\?s'; there are such as bias"):
            session.update_group(GroupUpdate("group1", {"rules": '[{"match": "b?s", "lr": 1}]'}))


def test_a_rule_of_an_added_group_matches_there_or_where_it_is_already(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        shared = [{"match": "bias", "lr": 0.5}]
        optimizer = optd.SGD({"bias": np.zeros(1)}, lr=1.0, rules=shared, session=session)
        optimizer.add_param_group({"params": {"head": np.zeros(1)}})
        with pytest.raises(errors.RuleMatchesNothing, match=r"'tale'; there are such as tail"):
            optimizer.add_param_group({"params": {"tail": np.zeros(1)}, "rules": [{"match": "tale", "lr": 2}]})
        optimizer.add_param_group({"params": {"tail": np.zeros(1)}, "rules": [{"match": "tail", "lr": 2}]})
        optimizer.step({name: np.ones(1) for name in ("bias", "head", "tail")})
        assert [group["params"][0].tolist() for group in optimizer.param_groups] == [[-0.5], [-1], [-2]]


def test_a_schedule_that_only_a_rule_sets_goes_on_with_the_versions(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        arrays = {"w": np.zeros(1), "b": np.zeros(1)}
        rules = [{"match": "b", "lr_schedule": schedules.Exponential(gamma=0.5)}]
        optimizer = optd.SGD(arrays, lr=1.0, rules=rules, session=session)
        for _ in range(3):
            optimizer.step({"w": np.ones(1), "b": np.ones(1)})
        assert (arrays["w"][0], arrays["b"][0]) == (-3, -1.75)


@pytest.mark.parametrize(
    ("params", "match", "says"),
    [
        (
            {"layers[0].bias": np.ones(1)},
            "layers[0].bias",
            "[[] for a bracket",
        ),
        (
            [{"params": {"w": np.ones(1)}}, {"params": [], "rules": [{"match": "b", "lr": 1}]}],
            None,
            "there are no para",
        ),
    ],
)
def test_advice_that_fits_is_given(server: LocalServer, name: str, params: Any, match: str | None, says: str) -> None:
    rules = {} if match is None else {"rules": [{"match": match, "lr": 1}]}
    with (
        optd.connect(server.address, job=name) as session,
        pytest.raises(errors.RuleMatchesNothing, match=re.escape(says)),
    ):
        optd.SGD(params, session=session, **rules)
