"""What scripts do to an optimizer beside the values of options: groups without parameters, other dicts, no state."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import optd
import optd.torch
from optd.errors import InvalidOption, StructureMismatch
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName


def tensor(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def stepped(optimizers: list[Any], seed: int) -> None:
    """One step of each, with gradients that are the same."""
    for optimizer in optimizers:
        generator = torch.Generator().manual_seed(seed)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()


def assert_equal(one: Any, other: Any) -> None:
    for group, theirs in zip(one.param_groups, other.param_groups, strict=True):
        for parameter, expected in zip(group["params"], theirs["params"], strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize(("cls", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("Adafactor", {})])
def test_groups_may_be_without_parameters(
    server: LocalServer, name: str, cls: str, options: dict[str, Any], lane: LaneName
) -> None:
    """As when parameters are dealt out by whether they decay, and none of a model's does."""
    with optd.connect(server.address, job=name, lane=lane, averages=optd.EMA(0.5)) as session:
        groups: Callable = lambda: [{"params": []}, {"params": [tensor(3, 4)]}]  # noqa: E731
        ours = getattr(optd.torch, cls)(groups(), lr=0.1, session=session, **options)
        theirs = getattr(torch.optim, cls)(groups(), lr=0.1, **options)
        stepped([ours, theirs], 1)
        for optimizer in (ours, theirs):
            optimizer.add_param_group({"params": []})
            optimizer.add_param_group({"params": [tensor(5, seed=2)]})
        ours.param_groups[0]["lr"] = 0.5
        stepped([ours, theirs], 2)
        assert_equal(ours, theirs)
        counts = [(group.parameters, group.elements, group.max_steps) for group in session.groups()]
        assert counts == [(0, 0, 0), (1, 12, 2), (0, 0, 0), (1, 5, 1)]
        assert session.groups()[0].min_steps == 0
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        ours.pull(weights="ema")
        ours.pull()
        stepped([ours, theirs], 3)
        assert_equal(ours, theirs)
        with optd.connect(server.address, job=name, worker="other", lane=lane) as second:
            again = [{"params": []}, {"params": [tensor(3, 4)]}, {"params": []}, {"params": [tensor(5)]}]
            attached = getattr(optd.torch, cls)(again, lr=0.1, session=second, **options)
            assert_equal(attached, ours)


def test_a_group_of_no_elements_is_added_where_memory_is_shared(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, lane="shm") as session:
        optimizer = optd.torch.SGD([tensor(3)], lr=0.1, session=session)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(0, 4, dtype=torch.float64))]})
        stepped([optimizer], 1)
        assert session.lane == "shm"


def test_momentum_may_be_dropped_from_a_group_with_nesterov(serve: Callable) -> None:
    """torch looks at the two together in its constructor alone."""
    optimizers = []
    for make in (lambda *args, **kwargs: serve(optd.torch.SGD, *args, **kwargs), torch.optim.SGD):
        optimizer = make([tensor(3)], lr=0.1, momentum=0.9, nesterov=True)
        optimizer.add_param_group({"params": [tensor(2)], "momentum": 0.0})
        optimizer.add_param_group({"params": [tensor(2)], "dampening": 0.3})
        optimizers.append(optimizer)
    stepped(optimizers, 1)
    for optimizer in optimizers:
        optimizer.param_groups[0]["momentum"] = 0.0
    stepped(optimizers, 2)
    stepped(optimizers, 3)
    assert_equal(*optimizers)
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        serve(optd.torch.SGD, [tensor(2)], nesterov=True)


def test_defaults_without_momentum_are_refused_with_nesterov(server: LocalServer, name: str) -> None:
    with (
        optd.connect(server.address, job=name) as session,
        pytest.raises(
            InvalidOption, match=r"sgd: nesterov must be false unless momentum > 0 and dampening = 0, got true"
        ),
    ):
        optd.SGD([tensor(2).detach().numpy()], nesterov=True, session=session)


CLEARED: dict[str, Callable[[Any], None]] = {
    "cleared": lambda optimizer: optimizer.state.clear(),
    "replaced": lambda optimizer: setattr(optimizer, "state", defaultdict(dict)),
}


@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
@pytest.mark.parametrize(("cls", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {})])
def test_state_can_be_dropped(serve: Callable, cls: str, options: dict[str, Any], clear: Callable[[Any], None]) -> None:
    ours = serve(getattr(optd.torch, cls), [tensor(3)], lr=0.1, **options)
    theirs = getattr(torch.optim, cls)([tensor(3)], lr=0.1, **options)
    stepped([ours, theirs], 1)
    for optimizer in (ours, theirs):
        clear(optimizer)
    for seed in (2, 3):
        stepped([ours, theirs], seed)
        assert_equal(ours, theirs)
    assert len(ours.state_dict()["state"]) == 1
    # Whatever comes before the next step.
    for optimizer in (ours, theirs):
        clear(optimizer)
    assert ours.state_dict()["state"] == theirs.state_dict()["state"] == {}
    stepped([ours, theirs], 4)
    for optimizer in (ours, theirs):
        clear(optimizer)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ours.load_state_dict({"state": {}, "param_groups": []})
    stepped([ours, theirs], 5)
    assert_equal(ours, theirs)


REPLACED: dict[str, Callable[[Any], None]] = {
    "one": lambda o: o.param_groups.__setitem__(0, {**o.param_groups[0], "lr": 0.5}),
    "all": lambda o: setattr(o, "param_groups", [{**group, "lr": 0.5} for group in o.param_groups]),
    "their lists": lambda o: [group.update(params=[*group["params"]], lr=0.5) for group in o.param_groups],
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
def test_groups_may_get_other_dicts(serve: Callable, replace: Callable[[Any], None]) -> None:
    ours, theirs = serve(optd.torch.SGD, [tensor(3)], lr=0.1), torch.optim.SGD([tensor(3)], lr=0.1)
    for seed in (1, 2):
        stepped([ours, theirs], seed)
        for optimizer in (ours, theirs):
            replace(optimizer)
            optimizer.param_groups[0]["weight_decay"] = seed / 10
    stepped([ours, theirs], 3)
    assert_equal(ours, theirs)
    assert ours.session.groups()[0].options.options["lr"] == 0.5
    ours.session.set_options(clip_norm=1e9)
    ours.load_state_dict(ours.state_dict())
    ours.pull()
    assert ours.param_groups[0]["weight_decay"] == 0.2


GROUPS = r"param_groups \(add_param_group\(\) adds one, and none can be taken away\) must have the 2 groups"
SECOND = r"param_groups\[1\]\['params'\] \(group 'group1'\) must have "
OTHERS: dict[str, tuple[Callable[[Any], None], str]] = {
    "none": (lambda o: o.param_groups.clear(), GROUPS + ".*got 0"),
    "fewer": (lambda o: o.param_groups.pop(), GROUPS + ".*got 1"),
    "others": (lambda o: o.param_groups[1].update(params=[tensor(2)]), SECOND + "the 2 parameters .*got 1"),
    "in another order": (lambda o: o.param_groups.reverse(), r"\(group 'group0'\) must have the 1 parameters .*got 2"),
    "another one in its place": (
        lambda o: o.param_groups[1]["params"].__setitem__(0, tensor(2)),
        SECOND + "at place 0 the tensor that was registered as parameter 'param1', got another one: copy its values",
    ),
}


@pytest.mark.parametrize(("change", "says"), OTHERS.values(), ids=OTHERS)
def test_other_groups_are_refused(serve: Callable, change: Callable[[Any], None], says: str) -> None:
    ours = serve(optd.torch.SGD, [{"params": [tensor(3)]}, {"params": [tensor(2), tensor(4)]}], lr=0.1)
    before = ours.session.pull()
    change(ours)
    for call in (ours.step, ours.push, ours.pull, ours.push_weights, ours.state_dict):
        with pytest.raises(StructureMismatch, match=says):
            call()
    assert ours.session.info().version.version == 0
    for name, array in ours.session.pull().items():
        assert (array == before[name]).all()


def test_options_that_a_new_group_brings_along_reach_dicts_that_were_replaced(server: LocalServer, name: str) -> None:
    with (
        optd.connect(server.address, job=name, worker="w0") as one,
        optd.connect(server.address, job=name, worker="w1") as two,
    ):
        first, second = (optd.torch.SGD([tensor(3)], lr=0.1, session=each) for each in (one, two))
        first.param_groups = [dict(group) for group in first.param_groups]
        second.param_groups[0]["lr"] = 0.5
        stepped([second], 1)
        first.add_param_group({"params": [tensor(2)]})
        assert first.param_groups[0]["lr"] == 0.5
        stepped([first], 2)
        assert one.groups()[0].options.options["lr"] == 0.5
