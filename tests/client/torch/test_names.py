"""Names of groups and parameters that repeat, as torch lets them: the server's are distinct, the script's stay."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import optd
import optd.torch


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return nn.Linear(3, 2), nn.Linear(3, 2)


def groups(*modules: nn.Module) -> list[dict[str, Any]]:
    return [
        {"name": "decayed", "params": list(modules[0].named_parameters()), "lr": 0.1},
        {"name": "decayed", "params": list(modules[1].named_parameters()), "lr": 0.2},
        {"name": "decayed.2", "params": [("weight", nn.Parameter(torch.ones(2)))]},
        {"name": "", "params": [("weight", nn.Parameter(torch.ones(1)))]},
        {"name": None, "params": [("bias", nn.Parameter(torch.ones(1)))]},
    ]


def served(session: optd.Session) -> dict[str, list[str]]:
    return {info.options.group: [parameter.name for parameter in info.parameters] for info in session.info().groups}


EXPECTED = {
    "decayed": ["weight", "bias"],
    "decayed.2": ["decayed.2.weight", "decayed.2.bias"],
    "decayed.2.2": ["decayed.2.2.weight"],
    "group3": ["group3.weight"],
    "group4": ["group4.bias"],
}


def test_groups_and_parameters_of_one_name_train_as_in_torch(where: dict[str, str]) -> None:
    theirs, ours = models(), models()
    torchs = torch.optim.AdamW(groups(*theirs), lr=0.3)
    with optd.torch.AdamW(groups(*ours), lr=0.3, **where) as optimizer:
        assert served(optimizer.session) == EXPECTED
        for _ in range(3):
            for (first, second), each in ((theirs, torchs), (ours, optimizer)):
                each.zero_grad()
                (first(torch.ones(1, 3)) - 2 * second(torch.ones(1, 3))).square().sum().backward()
                each.step()
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(list(found.parameters()), list(expected.parameters()), rtol=1e-6, atol=1e-6)
        there, here = torchs.state_dict()["param_groups"], optimizer.state_dict()["param_groups"]
        assert here == there, "names in the dicts are those of the script"
        optimizer.load_state_dict(torchs.state_dict())
        assert [group["name"] for group in optimizer.param_groups] == ["decayed", "decayed", "decayed.2", "", None]
        # Another worker has the same names.
        others = models()
        with optd.torch.AdamW(groups(*others), lr=0.3, **{**where, "worker": "w1"}) as second:
            assert second.version == 3
            assert torch.equal(others[1].weight, ours[1].weight)


def test_one_name_twice_in_a_group(serve: Callable[..., Any]) -> None:
    pairs = [("w", nn.Parameter(torch.zeros(2))) for _ in range(3)]
    torch.optim.SGD(pairs)  # which torch takes
    optimizer = serve(optd.torch.SGD, pairs, lr=1.0, rules=[{"match": "*w", "lr": 2.0}])
    assert served(optimizer.session) == {"group0": ["w", "group0.w", "group0.w.2"]}
    for number, (_, weight) in enumerate(pairs):
        weight.grad = torch.full((2,), 1.0 + number)
    optimizer.step()
    # The pattern matches the first two.
    assert [weight.tolist() for _, weight in pairs] == [[-2, -2], [-4, -4], [-3, -3]]


def test_a_group_of_a_known_name_may_come_in_mid_training(where: dict[str, str]) -> None:
    def added() -> dict[str, Any]:
        return {"params": [nn.Parameter(torch.ones(2))], "name": "group0", "lr": 0.5}

    def optimizers() -> Iterator[Any]:
        for worker in ("w0", "w1"):
            yield optd.torch.SGD([nn.Parameter(torch.zeros(2))], **{**where, "worker": worker})

    first, second = optimizers()
    for optimizer in (first, second):
        optimizer.add_param_group(added())
        assert list(served(optimizer.session)) == ["group0", "group0.2"]
    optimizer = second
    optimizer.param_groups[1]["params"][0].grad = torch.ones(2)
    optimizer.step()
    first.pull()
    assert first.param_groups[1]["params"][0].tolist() == [0.5, 0.5]
    for optimizer in (first, second):
        optimizer.close()
