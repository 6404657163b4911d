"""Muon for the matrices and AdamW for the rest in one optimizer, beside one torch optimizer for each."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
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

EXACT = 1e-12
# Muon's iteration is in bfloat16, which rounds numbers that hardly differ to numbers that are 2**-8 apart.
MUON = 5e-4
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


class Block(nn.Module):
    """A small transformer: an embedding, one layer of attention, a head.

    Without biases of the attention: the gradient of the keys' bias is 0 but for rounding, which AdamW makes large.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 11)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(tokens)
        attended, _ = self.attention(embedded, embedded, embedded, need_weights=False)
        return self.head(self.mlp(self.norm(embedded + attended)))

    def parts(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The matrices of the hidden layers, and the rest, by name."""
        named = dict(self.named_parameters())
        matrices = {name: each for name, each in named.items() if each.ndim == 2 and name.startswith(("att", "mlp"))}
        return matrices, {name: each for name, each in named.items() if name not in matrices}


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(100 + step))
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def groups_of(model: Block) -> list[dict[str, Any]]:
    matrices, rest = model.parts()
    return [
        {"params": list(matrices.items()), "algorithm": "muon", "lr": 0.02},
        {"params": list(rest.items()), "algorithm": "adamw", "lr": 3e-3, "weight_decay": 0.05},
    ]


class Twins:
    """One model with our optimizer, and its copy with one torch optimizer for each algorithm."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.ours, self.theirs = Block(), Block()
        self.optimizer = make(self.ours)
        matrices, rest = self.theirs.parts()
        self.muon = torch.optim.Muon(list(matrices.items()), lr=0.02)
        self.adamw = torch.optim.AdamW(list(rest.items()), lr=3e-3, weight_decay=0.05)
        self.beside = (self.muon, self.adamw)

    def backward(self, step: int) -> None:
        for model in (self.ours, self.theirs):
            model.zero_grad()
            loss_of(model, step).backward()

    def step(self, step: int) -> None:
        self.backward(step)
        self.optimizer.step()
        for optimizer in self.beside:
            optimizer.step()

    def compare(self) -> None:
        """Compares the weights, and gives torch's matrices ours: Muon's rounding must not reach AdamW's gradients."""
        with torch.no_grad():
            for ours, theirs in zip(self.ours.parts()[0].values(), self.theirs.parts()[0].values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=MUON)
                theirs.copy_(ours)
        for name, theirs in self.theirs.parts()[1].items():
            torch.testing.assert_close(self.ours.parts()[1][name], theirs, rtol=0, atol=EXACT, msg=name)


@pytest.fixture
def make(server: LocalServer, job_names: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes an optimizer of a model with a session of its own on some lane."""

    def construct(model: Block, lane: str = "grpc", **options: Any) -> Any:
        how = {name: options.pop(name) for name in ("gradients", "job", "worker") if name in options}
        how = {"job": next(job_names), "worker": "w0", **how}
        session = optd.connect(server.address, lane=lane, **how)
        request.addfinalizer(session.close)
        return optd.torch.Optimizer(groups_of(model), session=session, **options)

    return construct


@LANES
@pytest.mark.parametrize("zero_copy", [False, True], ids=["copied", "zero_copy"])
def test_it_trains_as_two_optimizers_of_torch_do(make: Callable[..., Any], lane: str, zero_copy: bool) -> None:
    twins = Twins(lambda model: make(model, lane, zero_copy=zero_copy))
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
def test_one_norm_bounds_the_gradient_of_all_groups(make: Callable[..., Any], lane: str) -> None:
    twins = Twins(lambda model: make(model, lane, gradients=optd.Gradients(clip_norm=0.3)))
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
def test_pushes_add_up_in_all_groups(make: Callable[..., Any], lane: str) -> None:
    twins = Twins(lambda model: make(model, lane, gradients=optd.Gradients(accumulate=2)))
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


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Of two state dicts: bit by bit."""
    assert one["param_groups"] == other["param_groups"]
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)


def as_default(model: Block, index: int) -> list[dict[str, Any]]:
    """The groups, of which one names nothing and takes what the constructor has."""
    groups = groups_of(model)
    groups[index] = {"params": groups[index]["params"]}
    return groups


EVERYWHERE = {
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=4, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=3),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.8),
    "CyclicLR": lambda o: CyclicLR(o, 1e-3, 1e-2, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=0.01, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("scheduler", EVERYWHERE.values(), ids=EVERYWHERE)
def test_schedulers_of_torch_move_all_groups(make: Callable[..., Any], scheduler: Callable[..., Any]) -> None:
    twins = Twins(make)
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


def test_a_scheduler_refuses_to_cycle_a_momentum_that_some_groups_lack(make: Callable[..., Any]) -> None:
    optimizer = make(Block())
    with pytest.raises(ValueError, match="optimizer must support momentum or beta1"):
        OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    assert set(optimizer.defaults) == {"lr", "weight_decay", "eps"}


RESUMED = """
import sys, torch, optd.torch
sys.path.insert(0, {root!r})
from tests.client.torch.test_group_algorithms import Block, groups_of, loss_of
torch.set_num_threads(1)
saved = torch.load({file!r}, weights_only=True)
model = Block()
model.load_state_dict(saved["model"])
optimizer = optd.torch.Optimizer(groups_of(model), server={server!r}, job={job!r})
optimizer.load_state_dict(saved["optimizer"])
for step in range(3, 6):
    model.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()
torch.save({{"model": model.state_dict(), "optimizer": optimizer.state_dict()}}, {file!r})
"""


def test_a_fresh_process_goes_on_from_a_state_dict(
    make: Callable[..., Any], server: LocalServer, job_names: Any, tmp_path: Path
) -> None:
    model, file = Block(), tmp_path / "saved.pt"
    optimizer = make(model)
    for step in range(6):
        model.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if step == 2:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    root = str(Path(__file__).parents[3])
    script = RESUMED.format(root=root, file=str(file), server=server.address, job=next(job_names))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    resumed = torch.load(file, weights_only=True)
    torch.testing.assert_close(resumed["model"], model.state_dict(), rtol=0, atol=0)
    assert_equal(resumed["optimizer"], optimizer.state_dict())
    names = [set(state) for state in resumed["optimizer"]["state"].values()]
    assert names.count({"momentum_buffer"}) == len(model.parts()[0])
    assert names.count({"step", "exp_avg", "exp_avg_sq"}) == len(model.parts()[1])


def test_state_dicts_of_two_optimizers_of_torch_become_one(make: Callable[..., Any]) -> None:
    twins = Twins(make)
    for step in range(2):
        twins.step(step)
        twins.compare()
    states = [optimizer.state_dict() for optimizer in twins.beside]
    shift = len(states[0]["param_groups"][0]["params"])
    second = states[1]["param_groups"][0]
    joined = {
        "state": states[0]["state"] | {shift + index: state for index, state in states[1]["state"].items()},
        "param_groups": [
            states[0]["param_groups"][0],
            {**second, "params": [shift + index for index in second["params"]]},
        ],
    }
    twins.optimizer.load_state_dict(copy.deepcopy(joined))
    assert [group["algorithm"] for group in twins.optimizer.param_groups] == ["muon", "adamw"]
    for step in range(2, 4):
        twins.step(step)
        twins.compare()


def test_a_state_dict_of_other_algorithms_is_refused(make: Callable[..., Any]) -> None:
    optimizer = make(Block())
    before = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(before)
    other["param_groups"][0]["algorithm"] = "sgd"
    with pytest.raises(errors.InvalidRequest, match="group 'group0' has the algorithm 'muon'.* got 'sgd'"):
        optimizer.load_state_dict(other)
    assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize("flattened", [False, True], ids=["nested", "flattened"])
def test_torchs_distributed_checkpoint(make: Callable[..., Any], flattened: bool) -> None:
    how = StateDictOptions(flatten_optimizer_state_dict=flattened)
    model, fresh = Block(), Block()
    optimizer = make(model)
    for step in range(2):
        model.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    model.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=how))
    names = {name.removeprefix("state.").rpartition(".")[0] for name in saved} if flattened else {*saved["state"]}
    assert names >= set(dict(model.named_parameters()))
    fresh.load_state_dict(model.state_dict())
    other = make(fresh)
    set_optimizer_state_dict(fresh, other, copy.deepcopy(saved), options=how)
    for each, trained in ((optimizer, model), (other, fresh)):
        loss_of(trained, 5).backward()
        each.step()
    torch.testing.assert_close(fresh.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_state_is_read_and_assigned_by_parameter(make: Callable[..., Any]) -> None:
    model = Block()
    optimizer = make(model)
    loss_of(model, 0).backward()
    optimizer.step()
    matrix, vector = (next(iter(part.values())) for part in model.parts())
    optimizer.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
    optimizer.state[vector] = {**optimizer.state[vector], "step": torch.tensor(7.0)}
    assert not optimizer.state[matrix]["momentum_buffer"].any()
    assert optimizer.state[vector]["step"] == 7
    with pytest.raises(errors.InvalidRequest, match="of muon keeps no exp_avg"):
        optimizer.state[matrix]["exp_avg"] = torch.zeros_like(matrix)


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


def test_another_worker_attaches_with_the_same_algorithms(make: Callable[..., Any], server: LocalServer) -> None:
    model = Block()
    optimizer = make(model)
    loss_of(model, 0).backward()
    optimizer.step()
    other = Block()
    make(other, job=optimizer.session.job, worker="w1")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    wrong = groups_of(Block())
    wrong[1] = {**wrong[1], "algorithm": "adam"}
    text = "in group 'group1' algorithm 'adamw', this registration has 'adam'"
    with pytest.raises(errors.JobMismatch, match=text):
        optd.torch.Optimizer(wrong, server=server.address, job=optimizer.session.job, worker="w2")


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


def test_options_of_every_group_reach_every_group(serve: Callable[..., Any]) -> None:
    optimizer = serve(optd.torch.AdamW, with_second(clip_norm=2.0), lr=0.5, clip_norm=1.0, lr_schedule="constant()")
    held = [group.options.options for group in optimizer.session.groups()]
    assert [options["clip_norm"] for options in held] == [1.0, 2.0]
    assert [options["lr_schedule"] for options in held] == ["constant()", "constant()"]
    assert [options["lr"] for options in held] == [0.001, 0.5], "lr is an option of adamw, the default algorithm"


def test_what_a_script_writes_into_groups_is_checked(make: Callable[..., Any]) -> None:
    model = Block()
    optimizer = make(model)
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
