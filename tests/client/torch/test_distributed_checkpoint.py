"""`torch.distributed.checkpoint`, whose functions ask `optimizer.state` and step an optimizer that has none yet."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.client.torch.classes import CASES, Case, Optimizer, assert_same_value, flat
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import optd
import optd.torch
from optd.errors import LossMissing, OptionOutOfRange
from optd.local import LocalServer

ROWS = {
    **{case.name: case for case in CASES},
    "Adam amsgrad": Case("Adam", {"amsgrad": True}),
    "SGD momentum": Case("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "AdamW decay": Case("AdamW", {"lr": 0.1, "weight_decay": 0.3}),
}
# torch flattens tensors, numbers and dicts alone, and not the lists that the state of LBFGS has.
FORMS = {
    f"{name} {'flattened' if flattened else 'nested'}": (case, flattened)
    for name, case in ROWS.items()
    for flattened in (False, True)
    if not (flattened and name == "LBFGS")
}
EACH = pytest.mark.parametrize(("case", "flattened"), FORMS.values(), ids=FORMS)
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])
# torch's functions step an optimizer without a state with zero gradients, lr 0 and no closure, which these do not take.
CANNOT_BEGIN = {"LBFGS": (TypeError, LossMissing), "SparseAdam": (RuntimeError, OptionOutOfRange)}


class Model(nn.Module):
    """Parameters of a case under names, other numbers for each seed."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.groups = nn.ModuleList(
            nn.ParameterList(torch.randn(shape, dtype=case.dtype, generator=generator) for shape in group)
            for group in case.shapes
        )

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(group)} for group in self.groups]


def options(flattened: bool) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=flattened)


def assert_same_checkpoint(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Equal in structure and order; of equal numbers where there is no `tolerance`."""
    if isinstance(expected, dict):
        assert sorted(map(str, found)) == sorted(map(str, expected))
        for name, value in expected.items():
            assert_same_checkpoint(found[name], value, tolerance)
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same_checkpoint(*pair, tolerance)
    elif isinstance(expected, torch.Tensor) or (isinstance(expected, list) and not isinstance(expected[0], str)):
        assert_same_value(found, expected, tolerance)
    else:
        assert found == expected


def trained(make: Callable[..., Any], case: Case, steps: int = 3) -> tuple[Model, Any]:
    torch.manual_seed(1)
    model = Model(case)
    optimizer = make(model.param_groups(), **case.defaults)
    for _ in range(steps):
        case.step(optimizer)
    optimizer.zero_grad()
    return model, optimizer


def load(pair: tuple[Model, Any], saved: tuple[Any, Any], flattened: bool = False) -> None:
    """Loads a copy of what `get_state_dict` gave."""
    weights, state = copy.deepcopy(saved)
    # Where all state is the first parameter's, the others have none.
    strict = not isinstance(pair[1], torch.optim.LBFGS)
    how = StateDictOptions(flatten_optimizer_state_dict=flattened, strict=strict)
    set_state_dict(*pair, model_state_dict=weights, optim_state_dict=state, options=how)


def go_on(case: Case, *pairs: tuple[Model, Optimizer]) -> None:
    """Trains all with the same gradients, and compares them with the first."""
    optimizers = [optimizer for _, optimizer in pairs]
    torch.manual_seed(2)
    for _ in range(2):
        case.step(*optimizers)
    for model, optimizer in pairs[1:]:
        torch.testing.assert_close(model.state_dict(), pairs[0][0].state_dict(), rtol=1e-6, atol=1e-6)
        assert flat(optimizer)[0] is next(model.parameters())


@EACH
def test_getting_a_state_changes_nothing(serve: Callable, case: Case, flattened: bool) -> None:
    theirs = trained(case.theirs, case)
    ours = trained(lambda *args, **kwargs: serve(case.ours, *args, **kwargs), case)
    before = ours[1].session.info().version
    found, expected = (get_optimizer_state_dict(*pair, options=options(flattened)) for pair in (ours, theirs))
    assert_same_checkpoint(found, expected)
    assert_same_checkpoint(get_state_dict(*ours, options=options(flattened))[1], found, 0)
    assert ours[1].session.info().version == before
    go_on(case, theirs, ours)


@EACH
def test_a_state_goes_back_in_mid_training(serve: Callable, case: Case, flattened: bool) -> None:
    """And between torch's classes and ours, whichever saved it."""
    theirs = trained(case.theirs, case)
    ours = trained(lambda *args, **kwargs: serve(case.ours, *args, **kwargs), case)
    saved = [copy.deepcopy(get_state_dict(*pair, options=options(flattened))) for pair in (theirs, ours)]
    for source in saved:
        go_on(case, theirs, ours)
        for pair in (theirs, ours):
            load(pair, source, flattened)
            assert_same_checkpoint(pair[0].state_dict(), source[0], 0)
            assert_same_checkpoint(get_optimizer_state_dict(*pair, options=options(flattened)), source[1])
    go_on(case, theirs, ours)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("saved_by", ["theirs", "ours"])
def test_a_state_goes_into_a_fresh_model_and_job(serve: Callable, case: Case, flattened: bool, saved_by: str) -> None:
    make = {"theirs": case.theirs, "ours": lambda *args, **kwargs: serve(case.ours, *args, **kwargs)}
    first = trained(make[saved_by], case)
    saved = copy.deepcopy(get_state_dict(*first, options=options(flattened)))
    fresh = {}
    for whose, construct in make.items():
        model = Model(case, seed=5)
        fresh[whose] = model, construct(model.param_groups(), **{**case.defaults, "lr": 0.77})
        if case.name in CANNOT_BEGIN:
            with pytest.raises(CANNOT_BEGIN[case.name][whose == "ours"]):
                load(fresh[whose], saved, flattened)
            continue
        load(fresh[whose], saved, flattened)
        if whose == "ours":
            # torch's step of an optimizer that has no state is one of the job, too.
            stepped = fresh[whose][1].session.info().version.version
            assert stepped == (0 if case.name == "Adagrad" else 1)
        assert_same_checkpoint(model.state_dict(), saved[0], 0)
        assert_same_checkpoint(get_optimizer_state_dict(*fresh[whose], options=options(flattened)), saved[1])
    if case.name in CANNOT_BEGIN:
        return
    go_on(case, first, *fresh.values())
    optimizer = fresh["ours"][1]
    for name, weights in optimizer.session.pull().items():
        index = int(name.removeprefix("param"))
        torch.testing.assert_close(torch.from_numpy(weights), flat(optimizer)[index].detach(), rtol=0, atol=0)


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
def test_a_model_is_loaded_before_or_after_its_optimizer(serve: Callable, order: str) -> None:
    case = ROWS["AdamW decay"]
    first = trained(lambda *args, **kwargs: serve(case.ours, *args, **kwargs), case)
    weights, state = copy.deepcopy(get_state_dict(*first))
    model = Model(case, seed=5)
    if order == "model first":
        model.load_state_dict(weights)
    optimizer = serve(case.ours, model.param_groups(), **case.defaults)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state)
    if order == "optimizer first":
        model.load_state_dict(weights)
    go_on(case, first, (model, optimizer))


@LANES
@pytest.mark.parametrize("where", ["same job", "another job"])
def test_a_new_program_goes_on_where_the_last_one_saved(
    server: LocalServer, name: str, lane: Any, where: str, tmp_path: Path
) -> None:
    """With `dcp.save` and `dcp.load`, without a process group, as torch's class does it."""
    case = ROWS["AdamW decay"]

    def start(job: str) -> tuple[Model, Any, optd.Session]:
        session = optd.connect(server.address, job=job, worker="w0", lane=lane)
        model = Model(case, seed=7)
        return model, case.ours(model.param_groups(), **case.defaults, session=session), session

    model, optimizer, session = start(name)
    theirs = trained(case.theirs, case, steps=0)
    theirs[0].load_state_dict(model.state_dict())
    for _ in range(3):
        case.step(theirs[1], optimizer)
    for pair, folder in ((theirs, "theirs"), ((model, optimizer), "ours")):
        weights, state = get_state_dict(*pair)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / folder, no_dist=True)
    case.step(optimizer)  # which nobody has saved
    session.close()

    model, optimizer, session = start(name if where == "same job" else f"{name}-2")
    with session:
        beside = Model(case, seed=8)
        fresh = beside, case.theirs(beside.param_groups(), **case.defaults)
        for pair, folder in ((fresh, "ours"), ((model, optimizer), "theirs")):
            weights, state = get_state_dict(*pair)
            dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / folder, no_dist=True)
            load(pair, (weights, state))
            torch.testing.assert_close(pair[0].state_dict(), theirs[0].state_dict(), rtol=1e-12, atol=1e-12)
            assert_same_checkpoint(get_optimizer_state_dict(*pair), get_optimizer_state_dict(*theirs))
        assert session.lane == lane
        go_on(case, theirs, fresh, (model, optimizer))


def test_options_and_the_servers_schedules_come_back(serve: Callable) -> None:
    case = Case("Adam", {"lr": 0.1})
    model = Model(case)
    schedule = optd.schedules.Linear(steps=20, end=0.0)
    ours = serve(case.ours, model.param_groups(), lr=0.1, lr_schedule=schedule)
    for _ in range(4):
        case.step(ours)
    ours.zero_grad()
    ours.param_groups[1]["weight_decay"] = 0.25
    saved = copy.deepcopy(get_state_dict(model, ours))
    other = Model(case, seed=5)
    fresh = serve(case.ours, other.param_groups(), lr=0.9, lr_schedule=schedule)
    load((other, fresh), saved)
    served = [summary.options.options for summary in fresh.session.groups()]
    assert [(group["lr"], group["weight_decay"]) for group in served] == [(0.1, 0.0), (0.1, 0.25)]
    for _ in range(3):
        case.step(ours, fresh)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
