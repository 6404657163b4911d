"""Hooks fire as those of torch do: in the same order, with the same arguments, and what they return counts."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.client.torch.classes import EACH, Case, Optimizer, assert_same_state, assert_same_weights
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import optd.torch

Log = list[tuple[Any, ...]]


@pytest.fixture
def globally() -> Iterator[Callable[..., None]]:
    """Registers hooks for all optimizers, and removes them after the test."""
    handles = []

    def register(pre: Callable, post: Callable) -> None:
        handles.extend([register_optimizer_step_pre_hook(pre), register_optimizer_step_post_hook(post)])

    yield register
    for handle in handles:
        handle.remove()


def shown(value: Any) -> Any:
    """An argument of a hook, in words that are the same for both optimizers."""
    if isinstance(value, Optimizer):
        return "the optimizer"
    if isinstance(value, dict) and "param_groups" in value:
        return "state dict", list(value), [list(group) for group in value["param_groups"]], list(value["state"])
    if isinstance(value, tuple | list):
        return tuple(map(shown, value))
    if isinstance(value, dict):
        return {key: shown(entry) for key, entry in value.items()}
    return "a closure" if callable(value) else value


def recorder(log: Log, name: str) -> Callable[..., None]:
    return lambda *arguments: log.append((name, *map(shown, arguments)))


def register_all(optimizer: Optimizer, log: Log) -> list[Any]:
    handles = []
    for number in (1, 2):
        for kind in ("step_pre", "step_post"):
            register = getattr(optimizer, f"register_{kind}_hook")
            handles.append(register(recorder(log, f"{kind} {number}")))
        for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            register = getattr(optimizer, f"register_{kind}_hook")
            handles.append(register(recorder(log, f"{kind} {number}"), prepend=number == 2))
    return handles


@EACH
def test_hooks_fire_as_those_of_torch(case: Case, serve: Callable, globally: Callable) -> None:
    optimizers = case.pair(serve)
    logs: tuple[Log, Log] = ([], [])
    globally(
        lambda optimizer, *rest: logs[optimizer is optimizers[1]].append(("global pre", *map(shown, rest))),
        lambda optimizer, *rest: logs[optimizer is optimizers[1]].append(("global post", *map(shown, rest))),
    )
    handles = [register_all(optimizer, log) for optimizer, log in zip(optimizers, logs, strict=True)]
    for optimizer in optimizers:
        case.gradients(*optimizers)
        if not case.needs_closure:
            optimizer.step()
        optimizer.step(lambda: 1.0)
        optimizer.step(closure=lambda: 1.0)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
    assert logs[1] == logs[0]
    assert {name.split(" ")[0] for name, *_ in logs[1]} == {
        "global", "step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre",
        "load_state_dict_post",
    }  # fmt: skip
    counted = len(logs[1])
    for handle in handles[1]:
        handle.remove()
    optimizers[1].load_state_dict(optimizers[1].state_dict())
    assert len(logs[1]) == counted


@EACH
def test_a_step_hook_may_change_the_arguments(case: Case, serve: Callable) -> None:
    results = []
    for optimizer in case.pair(serve):
        called: list[str] = []

        def closure(called: list[str] = called) -> float:
            called.append("closure")
            return 42.0

        def put_in(_: Any, args: Any, kwargs: Any, closure: Callable = closure) -> Any:
            return (args[0], closure), kwargs

        optimizer.register_step_pre_hook(put_in)
        optimizer.register_step_post_hook(lambda _, args, kwargs, called=called: called.append(str(len(args))))
        case.gradients(optimizer)
        results.append((float(optimizer.step()), called))
    assert results[1] == results[0]
    assert results[1][0] == 42


@EACH
def test_a_step_hook_that_returns_something_else_is_refused(case: Case, serve: Callable) -> None:
    messages = []
    for optimizer in case.pair(serve):
        optimizer.register_step_pre_hook(lambda *_: 3)
        case.gradients(optimizer)
        with pytest.raises(RuntimeError) as caught:
            optimizer.step(lambda: 1.0)
        messages.append(str(caught.value).replace(str(type(optimizer)), ""))
    assert messages[1].split("must return")[1] == messages[0].split("must return")[1]


@EACH
def test_what_hooks_do_to_the_state_counts(case: Case, serve: Callable) -> None:
    theirs, ours = case.pair(serve, lr=0.5)
    case.step(theirs, ours)

    def slower(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "lr": group["lr"] / 2} for group in state["param_groups"]]}

    for optimizer in (theirs, ours):
        optimizer.register_state_dict_pre_hook(lambda o: o.param_groups[0].update(note="saved"))
        optimizer.register_state_dict_post_hook(slower)
        optimizer.register_load_state_dict_pre_hook(slower)
        optimizer.register_load_state_dict_post_hook(lambda o: o.param_groups[-1].update(lr=0.0625))
        saved = optimizer.state_dict()
        assert [group["lr"] for group in saved["param_groups"]] == [0.25] * len(case.shapes)
        assert saved["param_groups"][0]["note"] == "saved"
        optimizer.load_state_dict(saved)
    expected = [0.125, 0.0625][-len(case.shapes) :]
    assert [group["lr"] for group in theirs.param_groups] == [group["lr"] for group in ours.param_groups] == expected
    assert [group.options.options["lr"] for group in ours.session.groups()] == expected
    assert_same_state(ours.state_dict(), theirs.state_dict())
    case.step(theirs, ours)
    assert_same_weights(ours, theirs)


@EACH
@pytest.mark.parametrize("in_order", [True, False])
def test_a_scheduler_warns_of_the_wrong_order_as_it_does_of_torchs(case: Case, in_order: bool, serve: Callable) -> None:
    seen = []
    for optimizer in case.pair(serve):
        scheduler = StepLR(optimizer, 1)
        case.gradients(optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for call in (lambda: optimizer.step(lambda: 1.0), scheduler.step)[:: 1 if in_order else -1]:  # noqa: B023
                call()
        seen.append([str(warning.message) for warning in caught])
    assert seen[1] == seen[0]
    assert bool(seen[1]) != in_order


def test_a_push_is_a_step_to_a_scheduler(serve: Callable) -> None:
    optimizer = serve(optd.torch.SGD, [torch.nn.Parameter(torch.ones(2))], lr=0.5)
    scheduler = StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.push()
        scheduler.step()


@EACH
def test_a_step_is_seen_by_the_profiler(case: Case, serve: Callable) -> None:
    _, ours = case.pair(serve)
    case.gradients(ours)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours.step(lambda: 1.0)
        ours.zero_grad()
    names = [event.key for event in profile.key_averages()]
    assert f"Optimizer.step#{case.name}.step" in names
    assert f"Optimizer.zero_grad#{case.name}.zero_grad" in names
