"""State dicts: as torch's own, into torch's own optimizers and back; hooks."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.classes import CASES, Case, Optimizer, assert_same_state, assert_same_weights, flat
from tests.client.torch.classes import EACH as EACH_CLASS
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import optd.torch
from optd.errors import InvalidOption, InvalidRequest, OptionConflict, OptionOutOfRange, ShapeMismatch, UnknownField
from optd.torch.optimizer import Served
from optd_wire.values import GroupUpdate

# A second group with other state than the first: momentum or amsgrad in one of them only.
TABLE = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}, {"momentum": 0.0}),
    ("SGD", {"lr": 0.1, "nesterov": True, "momentum": 0.5, "weight_decay": 0.1}, {}),
    ("Adam", {"lr": 0.1, "amsgrad": True}, {"amsgrad": False}),
    ("Adam", {"lr": 0.1, "betas": (0.5, 0.6), "fused": True}, {}),
    ("AdamW", {"lr": 0.1}, {"amsgrad": True}),
]
TABLE += [(case.name, case.defaults, {}) for case in CASES if case.name not in {name for name, *_ in TABLE}]
EACH = pytest.mark.parametrize(
    ("name", "defaults", "second"), TABLE, ids=[f"{row[0]}-{i}" for i, row in enumerate(TABLE)]
)
SGD = next(case for case in CASES if case.name == "SGD")
SHAPES = [shape for group in SGD.shapes for shape in group]


def parameters() -> list[nn.Parameter]:
    return [parameter for group in SGD.parameters() for parameter in group]


@torch.no_grad()
def train(optimizers: list[Optimizer], steps: int, case: Case = SGD, *, all_but_last: bool = False) -> None:
    """The last parameter has no gradient until the training goes on."""
    for _ in range(steps):
        case.gradients(*optimizers)
        for optimizer in optimizers:
            if all_but_last:
                flat(optimizer)[-1].grad = None
            optimizer.step(*[lambda: 1.0] if case.needs_closure else [])


class Bench:
    """Makes optimizers of one class, torch's and ours, with parameters of their own but equal ones."""

    def __init__(self, serve: Callable, name: str, defaults: dict[str, Any], second: dict[str, Any]) -> None:
        self._serve = serve
        self.case = next(case for case in CASES if case.name == name)
        self._defaults = defaults
        self._second = second

    def _groups(self, weights: Optimizer | None) -> list[dict[str, Any]]:
        first, *others = self.case.groups()
        made = first["params"]
        if not self.case.needs_closure:  # torch's LBFGS takes no others
            made[0] = nn.Parameter(made[0].detach().t().contiguous().t())  # with strides of its own
        groups = [first, *({**group, **self._second} for group in others)]
        source = iter(flat(weights) if weights else [])
        with torch.no_grad():
            for parameter in [p for group in groups for p in group["params"] if weights]:
                parameter.copy_(next(source))
        return groups

    def torchs(self, weights: Optimizer | None = None, **others: Any) -> Optimizer:
        return self.case.theirs(self._groups(weights), **{**self._defaults, **others})

    def ours(self, weights: Optimizer | None = None, **others: Any) -> Any:
        return self._serve(self.case.ours, self._groups(weights), **{**self._defaults, **others})

    def train(self, *optimizers: Optimizer, steps: int, **how: Any) -> None:
        train(list(optimizers), steps, self.case, **how)


@pytest.fixture
def bench(request: pytest.FixtureRequest, serve: Callable) -> Bench:
    return Bench(serve, request.getfixturevalue("name"), *map(request.getfixturevalue, ("defaults", "second")))


@EACH
def test_a_state_dict_is_as_torchs(bench: Bench, name: str, defaults: dict, second: dict) -> None:
    theirs, ours = bench.torchs(), bench.ours()
    assert_same_state(ours.state_dict(), theirs.state_dict())
    bench.train(theirs, ours, steps=3, all_but_last=True)
    assert_same_state(ours.state_dict(), theirs.state_dict())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    assert_same_state(torch.load(file, weights_only=True), theirs.state_dict())


@EACH
def test_state_goes_from_torch_to_the_server_and_back(bench: Bench, name: str, defaults: dict, second: dict) -> None:
    theirs = bench.torchs()
    bench.train(theirs, steps=4, all_but_last=True)
    ours = bench.ours(theirs, lr=0.7)
    ours.load_state_dict(theirs.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())
    for group, summary in zip(theirs.param_groups, ours.session.groups(), strict=True):
        served = summary.options.options
        assert served == {option: group[option] for option in served}
    bench.train(theirs, ours, steps=4)
    back = bench.torchs(ours)
    back.load_state_dict(ours.state_dict())
    bench.train(theirs, ours, back, steps=4)
    for expected, *found in zip(flat(theirs), flat(ours), flat(back), strict=True):
        for weights in found:
            torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)
    assert_same_state(ours.state_dict(), theirs.state_dict())
    assert_same_state(back.state_dict(), theirs.state_dict())


@EACH
def test_state_that_the_loaded_one_does_not_have_is_forgotten(
    bench: Bench, name: str, defaults: dict, second: dict
) -> None:
    theirs, ours = bench.torchs(), bench.ours()
    early = theirs.state_dict()
    bench.train(theirs, ours, steps=1, all_but_last=True)
    partly = copy.deepcopy(theirs.state_dict())
    bench.train(theirs, ours, steps=2)
    for saved in (partly, early):
        for optimizer in (theirs, ours):
            optimizer.load_state_dict(saved)
        assert_same_state(ours.state_dict(), theirs.state_dict())
        bench.train(theirs, ours, steps=2)
        assert_same_state(ours.state_dict(), theirs.state_dict())
        assert_same_weights(ours, theirs)


@EACH
def test_steps_are_counted_in_the_dtype_that_torch_takes(bench: Bench, name: str, defaults: dict, second: dict) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs, ours = bench.torchs(), bench.ours()
        bench.train(theirs, ours, steps=1)
        assert_same_state(ours.state_dict(), theirs.state_dict())
    finally:
        torch.set_default_dtype(before)


class Early(torch.optim.SGD):
    """A class that has a state from its construction, as Adagrad has."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__(params, lr, momentum)
        for parameter in flat(self):
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class ServedEarly(Served, Early, algorithm="sgd", keeps_step=False):
    pass


def test_a_state_that_is_there_from_construction_is_shown(serve: Callable) -> None:
    theirs, ours = Early(parameters()), serve(ServedEarly, parameters())
    assert_same_state(ours.state_dict(), theirs.state_dict())
    train([theirs, ours], 2, all_but_last=True)
    assert_same_state(ours.state_dict(), theirs.state_dict())
    for optimizer in (theirs, ours):
        optimizer.load_state_dict(torch.optim.SGD(parameters(), momentum=0.9).state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())


def test_a_state_of_no_steps_is_loaded(serve: Callable) -> None:
    theirs, ours = torch.optim.Adam(parameters()), serve(optd.torch.Adam, parameters())
    train([theirs, ours], 1)
    saved = copy.deepcopy(theirs.state_dict())
    for state in saved["state"].values():
        state["step"].zero_()
    for optimizer in (theirs, ours):
        optimizer.load_state_dict(copy.deepcopy(saved))
    assert_same_state(ours.state_dict(), theirs.state_dict())
    train([theirs, ours], 2)
    assert_same_state(ours.state_dict(), theirs.state_dict())
    assert_same_weights(ours, theirs)


def test_what_schedulers_and_scripts_put_into_groups_is_saved_and_loaded(serve: Callable) -> None:
    theirs = torch.optim.SGD([{"params": parameters(), "initial_lr": 5, "note": "a"}])
    ours = serve(optd.torch.SGD, [{"params": parameters(), "other": 1}])
    groups, group = ours.param_groups, ours.param_groups[0]
    ours.load_state_dict(theirs.state_dict())
    assert {**group, "params": None} == {**theirs.param_groups[0], "params": None}
    assert ours.param_groups is groups
    assert ours.param_groups[0] is group
    group["lr"] = 0.5
    ours.step()
    assert ours.session.groups()[0].options.options["lr"] == 0.5


def test_a_script_that_resumes_from_a_checkpoint_goes_on_with_its_weights(serve: Callable) -> None:
    """The order of torch's tutorial: construct both, then load both."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs = torch.optim.Adam(other.parameters())
    other(torch.ones(1, 3)).sum().backward()
    theirs.step()
    checkpoint = {"model": other.state_dict(), "optimizer": theirs.state_dict()}
    ours = serve(optd.torch.Adam, model.parameters())
    model.load_state_dict(checkpoint["model"])
    ours.load_state_dict(checkpoint["optimizer"])
    for network, optimizer in ((model, ours), (other, theirs)):
        optimizer.zero_grad()
        network(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))


@pytest.mark.parametrize("name", ["SGD"])
@pytest.mark.parametrize(("defaults", "second"), [({"lr": 0.1, "momentum": 0.9}, {})])
def test_a_state_dict_that_does_not_fit_changes_nothing(bench: Bench, name: str, defaults: dict, second: dict) -> None:
    ours = bench.ours()
    train([ours], 2)
    before = copy.deepcopy(ours.state_dict())

    def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        state = copy.deepcopy(before)
        state["param_groups"][0]["lr"] = 0.9
        change(state)
        return state

    adam = torch.optim.Adam([{"params": p} for p in (parameters()[:2], parameters()[2:])])
    train([adam], 1)
    table = [
        (ValueError, "different number of parameter groups", changed(lambda s: s["param_groups"].pop())),
        (
            ValueError,
            "doesn't match the size of optimizer's group",
            changed(lambda s: s["param_groups"][0]["params"].pop()),
        ),
        (
            ShapeMismatch,
            r"momentum_buffer of parameter 'param1' must have shape \(\), got \(2,\)",
            changed(lambda s: s["state"][1].update(momentum_buffer=torch.ones(2))),
        ),
        (
            OptionOutOfRange,
            r"momentum must be in \[0, inf\), got -1",
            changed(lambda s: s["param_groups"][0].update(momentum=-1)),
        ),
        (
            InvalidOption,
            "differentiable must be False",
            changed(lambda s: s["param_groups"][1].update(differentiable=True)),
        ),
    ]
    for error, message, state in table:
        with pytest.raises(error, match=message):
            ours.load_state_dict(state)
        assert_same_state(ours.state_dict(), before)
    with pytest.raises(UnknownField, match="keeps no 'exp_avg'; it keeps momentum_buffer"):
        ours.load_state_dict(adam.state_dict())
    assert_same_state(ours.state_dict(), before)
    train([ours], 1)
    assert {group.options.options["lr"] for group in ours.session.groups()} == {0.1}


def on_server(optimizer: Served) -> tuple[list[Any], ...]:
    """Weights, state and options of a job, as its server has them."""
    weights = [(name, array.tolist()) for name, array in optimizer.session.pull().items()]
    momenta = [(key, state["momentum_buffer"].tolist()) for key, state in optimizer.state_dict()["state"].items()]
    return weights, momenta, [group.options for group in optimizer.session.groups()]


def trained(serve: Callable) -> tuple[Served, dict[str, Any]]:
    """An optimizer after two steps whose first weights are zeroed here, and a state dict that has another lr."""
    ours = serve(optd.torch.SGD, parameters(), lr=0.1, momentum=0.9)
    train([ours], 1)
    saved = ours.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    train([ours], 1)
    with torch.no_grad():
        flat(ours)[0].zero_()
    return ours, saved


def test_loading_replaces_weights_state_and_options_at_once(serve: Callable) -> None:
    ours, saved = trained(serve)
    revision = ours.session.info().version.revision
    ours.load_state_dict(saved)
    assert ours.session.info().version.revision == revision + 1
    weights, momenta, options = on_server(ours)
    assert not np.any(weights[0][1])
    assert momenta == [(key, state["momentum_buffer"].tolist()) for key, state in saved["state"].items()]
    assert options[0].options["lr"] == 0.5


def of_adam(saved: dict[str, Any]) -> None:
    saved["state"][0]["exp_avg"] = torch.zeros_like(saved["state"][0]["momentum_buffer"])


def out_of_range(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["momentum"] = -1.0


@pytest.mark.parametrize(("spoil", "error"), [(of_adam, UnknownField), (out_of_range, OptionOutOfRange)])
def test_a_load_that_the_server_refuses_changes_nothing_there(serve: Callable, spoil: Callable, error: type) -> None:
    ours, saved = trained(serve)
    before = on_server(ours)
    spoil(saved)
    with pytest.raises(error):
        ours.load_state_dict(saved)
    assert on_server(ours) == before


def test_a_load_conflicts_with_a_change_that_it_does_not_know_of(serve: Callable) -> None:
    ours, saved = trained(serve)
    ours.session.update_group(GroupUpdate("group0", {"lr": 0.3}))
    before = on_server(ours)
    with pytest.raises(OptionConflict, match=r"lr"):
        ours.load_state_dict(saved)
    assert on_server(ours) == before
    ours.pull()
    ours.load_state_dict(saved)
    assert on_server(ours)[2][0].options["lr"] == 0.5


def test_options_that_torch_does_not_have_stay_where_its_state_is_loaded(serve: Callable) -> None:
    extras = {"lookahead_steps": 2, "clip_norm": 0.5, "lr_schedule": "linear(steps=10)"}
    ours = serve(optd.torch.SGD, parameters(), lr=0.1, momentum=0.9, **extras)
    ours.load_state_dict(torch.optim.SGD(parameters(), lr=0.2, momentum=0.9).state_dict())
    for options in (
        ours.param_groups[0],
        ours.session.groups()[0].options.options,
        ours.state_dict()["param_groups"][0],
    ):
        assert {name: options[name] for name in extras} == extras
        assert options["lr"] == 0.2


def test_weights_that_a_refused_load_was_to_send_go_with_the_next_one(serve: Callable) -> None:
    ours, saved = trained(serve)
    bad = copy.deepcopy(saved)
    out_of_range(bad)
    with pytest.raises(OptionOutOfRange):
        ours.load_state_dict(bad)
    ours.load_state_dict(saved)
    assert not np.any(on_server(ours)[0][0][1])


def test_a_load_puts_an_option_back_or_conflicts_though_it_is_what_was_here(serve: Callable) -> None:
    """Somebody else has changed it, which this worker does not know."""
    ours, _ = trained(serve)
    saved = ours.state_dict()
    ours.session.update_group(GroupUpdate("group0", {"lr": 0.3}))
    with pytest.raises(OptionConflict, match=r"lr was to become 0.1, but it has been changed to 0.3"):
        ours.load_state_dict(saved)
    ours.pull()
    ours.load_state_dict(saved)
    assert on_server(ours)[2][0].options["lr"] == 0.1


def test_a_hook_may_make_anything_of_a_state_dict(serve: Callable) -> None:
    ours = serve(optd.torch.SGD, parameters(), lr=0.1, lr_schedule="linear(steps=10)")
    train([ours], 3)
    seen: list[Any] = []
    ours.register_state_dict_post_hook(lambda _, saved: seen.append(saved) or {"optimizer": saved, "format": 2})
    assert ours.state_dict() == {"optimizer": seen[0], "format": 2}
    assert seen[0]["param_groups"][0]["schedule_start"] == -3
    assert "schedule_start" not in ours.param_groups[0]


@pytest.mark.parametrize("count", [-1.0, float("nan"), 2.5, float("inf")])
def test_a_step_count_that_is_none_is_refused(serve: Callable, count: float) -> None:
    ours = serve(optd.torch.Adam, parameters())
    train([ours], 1)
    saved = ours.state_dict()
    saved["state"][0]["step"] = torch.tensor(count)
    says = r"step of parameter 'param0' must be a whole number in \[0, 2\*\*62\), got "
    with pytest.raises(InvalidRequest, match=says):
        ours.load_state_dict(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_state_of_other_shapes_that_torch_has_rounded_is_loaded(serve: Callable, dtype: torch.dtype) -> None:
    theirs = torch.nn.Parameter(torch.randn(4, 3).to(dtype))
    reference = torch.optim.Adafactor([theirs])
    theirs.grad = torch.randn(4, 3).to(dtype)
    reference.step()
    ours = serve(optd.torch.Adafactor, [torch.nn.Parameter(theirs.detach().clone())])
    ours.load_state_dict(reference.state_dict())
    state, expected = ours.state_dict()["state"][0], reference.state_dict()["state"][0]
    for field in ("row_var", "col_var"):
        assert torch.equal(state[field], expected[field].float())
    reference.load_state_dict(ours.state_dict())
    ours.load_state_dict(reference.state_dict())


# Hooks


def test_step_hooks_fire_once_for_each_step(serve: Callable) -> None:
    class Custom(optd.torch.SGD):
        pass

    for kind in (optd.torch.SGD, Custom, optd.torch.SGD):
        optimizer = serve(kind, parameters())
        fired: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))  # noqa: B023
        optimizer.register_step_post_hook(lambda *_: fired.append("post"))  # noqa: B023
        handles = [
            register_optimizer_step_pre_hook(lambda *_: fired.append("global pre")),  # noqa: B023
            register_optimizer_step_post_hook(lambda *_: fired.append("global post")),  # noqa: B023
        ]
        try:
            optimizer.step()
        finally:
            for handle in handles:
                handle.remove()
        assert fired == ["global pre", "pre", "post", "global post"]
        assert optimizer.version == 1


def test_a_pre_hook_may_put_a_closure_in(serve: Callable) -> None:
    optimizer = serve(optd.torch.SGD, parameters())
    optimizer.register_step_pre_hook(lambda _, args, kwargs: ((args[0], lambda: 42.0), kwargs))
    assert optimizer.step() == 42.0


def test_state_dict_hooks_fire(serve: Callable) -> None:
    optimizer = serve(optd.torch.Adam, parameters())
    fired: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda o: fired.append(o is optimizer))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "extra": len(state["state"])})
    train([optimizer], 1)
    saved = optimizer.state_dict()
    assert (fired, saved["extra"]) == ([True], len(SHAPES))

    def halve(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**g, "lr": g["lr"] / 2} for g in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(lambda _, state: halve(state))
    optimizer.register_load_state_dict_post_hook(lambda o: o.param_groups[0].update(eps=0.5))
    optimizer.load_state_dict(saved)
    options = optimizer.session.groups()[0].options.options
    assert (options["lr"], options["eps"]) == (saved["param_groups"][0]["lr"] / 2, 0.5)


# Closures


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned(serve: Callable) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = serve(optd.torch.SGD, [weight], lr=0.5)
    seen: list[bool] = []

    def closure() -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 2
    assert (seen, weight.tolist()) == ([True], [0, 0])
    assert optimizer.step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool, serve: Callable) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = serve(optd.torch.SGD, [weight], weight_decay=0.5, lr=1.0)
    weight.grad = torch.ones(2)
    optimizer.zero_grad(set_to_none)
    optimizer.step()
    assert weight.tolist() == ([1, 1] if set_to_none else [0.5, 0.5]), "no gradient is not a gradient of zeros"


@pytest.mark.parametrize("case", [case for case in CASES if len(case.shapes) > 1], ids=str)
def test_a_group_that_is_added_in_mid_training_begins_with_a_state_of_its_own(case: Case, serve: Callable) -> None:
    theirs, ours = case.pair(serve)
    case.step(theirs, ours)
    for optimizer in (theirs, ours):
        added = [nn.Parameter(torch.ones_like(parameter)) for parameter in case.parameters()[0]]
        optimizer.add_param_group({"params": added, "lr": 0.25, "note": "added"})
    assert_same_state(ours.state_dict(), theirs.state_dict())
    for _ in range(2):
        case.step(theirs, ours)
    assert_same_weights(ours, theirs)
    assert_same_state(ours.state_dict(), theirs.state_dict())
    for optimizer in (theirs, ours):
        optimizer.load_state_dict(theirs.state_dict())
    case.step(theirs, ours)
    assert_same_weights(ours, theirs)


@EACH_CLASS
def test_it_is_shown_as_that_of_torch(case: Case, serve: Callable) -> None:
    theirs, ours = case.pair(serve)
    assert repr(ours) == repr(theirs)
    case.step(theirs, ours)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps, lambda o: torch.save(o, io.BytesIO())])
def test_an_optimizer_is_neither_copied_nor_pickled(copied: Callable, serve: Callable) -> None:
    optimizer = serve(optd.torch.SGD, parameters())
    with pytest.raises(TypeError, match=r"SGD can be neither pickled nor copied: .* save state_dict\(\)"):
        copied(optimizer)
