"""What an optimizer refuses of groups that name their algorithms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.mixed import Block, loss_of
from torch import nn

import optd
import optd.torch
from optd import errors


def two(**of_first: Any) -> list[dict[str, Any]]:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    return [{"params": [first], "algorithm": "muon", **of_first}, {"params": [second], "algorithm": "adamw"}]


def with_second(**of_second: Any) -> list[dict[str, Any]]:
    groups = two()
    groups[1].update(of_second)
    return groups


Torch = optd.torch


REFUSED: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "an option of another algorithm": (
        lambda **where: Torch.Optimizer(two(betas=(0.9, 0.99)), **where),
        errors.UnknownOption,
        "muon: no option 'betas'; the options are lr,",
    ),
    "a misspelt option": (
        lambda **where: Torch.Optimizer(two(momentun=0.9), **where),
        errors.UnknownOption,
        "muon: no option 'momentun'; did you mean 'momentum'?",
    ),
    "an option out of range": (
        lambda **where: Torch.Optimizer(two(lr=-1.0), **where),
        errors.OptionOutOfRange,
        r"muon: lr must be in \[0, inf\), got -1",
    ),
    "an option of another algorithm in a group of the default one": (
        lambda **where: Torch.AdamW([two()[0], {"params": two()[1]["params"], "momentum": 0.9}], **where),
        errors.UnknownOption,
        "adamw: no option 'momentum'",
    ),
    "an unknown algorithm": (
        lambda **where: Torch.Optimizer(two(algorithm="muom"), **where),
        errors.UnknownAlgorithm,
        "no algorithm 'muom'; the nearest is 'muon'",
    ),
    "a class as the algorithm": (
        lambda **where: Torch.Optimizer(two(algorithm=torch.optim.Muon), **where),
        errors.InvalidRequest,
        "the algorithm of group 'group0' must be a name such as 'adamw', got",
    ),
    "no algorithm and no default": (
        lambda **where: Torch.Optimizer([two()[0], {"params": two()[1]["params"]}], **where),
        errors.InvalidRequest,
        "group 'group1' names no algorithm, and the optimizer has no default one",
    ),
    "options without a default algorithm": (
        lambda **where: Torch.Optimizer(two(), lr=0.1, **where),
        errors.InvalidRequest,
        "no default algorithm that could have the option 'lr'",
    ),
    "the algorithm behind the params": (
        lambda **where: Torch.Optimizer(two(), "adamw", **where),
        TypeError,
        "the algorithm comes first and is a name",
    ),
    "no params": (lambda **where: Torch.Optimizer("adamw", **where), TypeError, "missing params"),
    "a vector for muon": (
        lambda **where: Torch.Optimizer(with_second(algorithm="muon"), **where),
        errors.UnservedShape,
        "muon: parameter 'param1' must have 2 dimensions",
    ),
    "lbfgs beside others": (
        lambda **where: Torch.Optimizer(with_second(algorithm="lbfgs"), **where),
        errors.UnservedGroups,
        "lbfgs takes one group",
    ),
    "a complex matrix for muon": (
        lambda **where: Torch.AdamW(
            [{"params": [nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], "algorithm": "muon"}], **where
        ),
        errors.UnsupportedDtype,
        "muon takes no complex parameters",
    ),
    "a schedule that a group cannot have": (
        lambda **where: Torch.Optimizer(two(), schedules={"betas[0]": optd.schedules.Linear(steps=5)}, **where),
        errors.UnknownOption,
        r"muon: no option 'betas\[0\]'",
    ),
    "a graph of steps": (
        lambda **where: Torch.Optimizer(with_second(capturable=True), **where),
        errors.InvalidOption,
        "adamw: capturable must be False",
    ),
}


@pytest.mark.parametrize(("construct", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(where: dict[str, str], construct: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        construct(**where)
    assert where["job"] not in [job.name for job in optd.jobs(server=where["server"])]


def test_options_that_no_group_would_get_are_warned_of(serve: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="lr=0.5 counts for groups of the algorithm 'sgd', and each group names"):
        serve(optd.torch.SGD, two(), lr=0.5)


def test_what_a_script_writes_into_groups_is_checked(make_mixed: Callable[..., Any]) -> None:
    model = Block()
    optimizer = make_mixed(model)
    loss_of(model, 0).backward()
    optimizer.param_groups[0]["betas"] = (0.9, 0.99)
    with pytest.raises(errors.UnknownOption, match="muon: no option 'betas'"):
        optimizer.step()
    del optimizer.param_groups[0]["betas"]
    optimizer.param_groups[0]["algorithm"] = "sgd"
    with pytest.raises(errors.InvalidRequest, match="a group keeps its algorithm; got 'sgd'"):
        optimizer.step()
    optimizer.param_groups[0]["algorithm"] = "muon"
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    assert optimizer.session.groups()[0].options.options["momentum"] == 0.5
