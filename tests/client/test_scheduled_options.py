"""`schedules`: every number of a group may follow the job's version, as torch does where a script sets it each step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

import optd
import optd.torch
from optd import errors, schedules
from optd.ctl.app import app
from optd.local import LocalServer
from optd_server.engine.options.resolution import find_algorithm, resolve_options
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.group_options import effective, schedulable

FALL = schedules.Linear(steps=6, start=1.0, end=0.4, warmup=2, warmup_start=0.5)


def fall(version: int) -> float:
    return 0.5 + 0.25 * version if version < 2 else 1.0 - 0.6 * min(version - 2, 6) / 6


CASES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[str, int | None]]]] = {
    "AdamW": (
        "AdamW",
        {"lr": 0.05, "weight_decay": 0.3},
        {"weight_decay": ("weight_decay", None), "betas[1]": ("betas", 1), "eps": ("eps", None)},
    ),
    "Adam": ("Adam", {"lr": 0.05, "weight_decay": 0.3}, {"betas[0]": ("betas", 0), "lr": ("lr", None)}),
    "SGD": (
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2},
        {"momentum": ("momentum", None), "dampening": ("dampening", None), "weight_decay": ("weight_decay", None)},
    ),
    "RMSprop": ("RMSprop", {"lr": 0.01, "weight_decay": 0.1}, {"alpha": ("alpha", None), "eps": ("eps", None)}),
    "Adadelta": ("Adadelta", {"weight_decay": 0.1}, {"rho": ("rho", None), "lr": ("lr", None)}),
    "Adagrad": ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}, {"lr_decay": ("lr_decay", None)}),
    "NAdam": ("NAdam", {"weight_decay": 0.1}, {"momentum_decay": ("momentum_decay", None)}),
    "ASGD": ("ASGD", {"lr": 0.05}, {"lambd": ("lambd", None), "alpha": ("alpha", None)}),
    "Rprop": ("Rprop", {"lr": 0.05}, {"etas[0]": ("etas", 0), "step_sizes[1]": ("step_sizes", 1)}),
    "Adafactor": ("Adafactor", {"weight_decay": 0.1}, {"beta2_decay": ("beta2_decay", None), "eps[1]": ("eps", 1)}),
}


@pytest.mark.parametrize("face", ["torch", "numpy"])
@pytest.mark.parametrize(("kind", "options", "names"), CASES.values(), ids=CASES)
def test_as_torch_where_a_script_sets_it_before_each_step(
    server: LocalServer, name: str, face: str, kind: str, options: dict[str, Any], names: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    reference = getattr(torch.optim, kind)([theirs], **options)
    base = {option: reference.param_groups[0][option] for option, _ in names.values()}
    given = dict.fromkeys(names, FALL)
    with optd.connect(server.address, job=name) as session:
        ours = torch.nn.Parameter(theirs.detach().clone())
        array = ours.detach().numpy()
        optimizer: Any = (
            getattr(optd.torch, kind)([ours], schedules=given, session=session, **options)
            if face == "torch"
            else getattr(optd, kind)({"w": array}, schedules=given, session=session, **options)
        )
        for version in range(10):
            group = reference.param_groups[0]
            for option, place in names.values():
                known = list(base[option]) if place is not None else None
                if known is None:
                    group[option] = base[option] * fall(version)
                else:
                    known[place] *= fall(version)
                    group[option] = tuple(known)
            theirs.grad = torch.randn_like(theirs)
            ours.grad = theirs.grad.clone()
            reference.step()
            optimizer.step(*([] if face == "torch" else [{"w": ours.grad.numpy()}]))
            np.testing.assert_allclose(array, theirs.detach().numpy(), rtol=1e-11, atol=1e-14)
        assert set(session.groups()[0].effective) == {option for option, _ in names.values()}


def test_bounds_of_groups_and_lookahead(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        array = np.zeros(2)
        optimizer = optd.SGD({"w": array}, lr=1.0, clip_norm=4.0, schedules={"clip_norm": FALL}, session=session)
        for version in range(9):
            before = array.copy()
            result = optimizer.step({"w": np.array([30.0, 40.0])})
            assert np.linalg.norm(array - before) == pytest.approx(4.0 * fall(version), rel=1e-6)
            assert result.norm.gradient == 50.0
        options = {"clip_value": 2.0, "lookahead_steps": 1, "schedules": {"clip_value": FALL, "lookahead_alpha": FALL}}
        optimizer.add_param_group({"params": {"v": np.zeros(1)}, "schedule_start": optimizer.version, **options})
        found = 0.0
        for version in range(9):
            optimizer.step([{"w": None}, {"v": np.array([50.0])}])
            found -= 0.5 * fall(version) * 2.0 * fall(version)
            assert optimizer.weights["v"][0] == pytest.approx(found, rel=1e-12)


def test_a_group_a_rule_and_a_person_set_them(server: LocalServer, name: str) -> None:
    def optctl(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), env={"OPTD_SERVER": server.address, "COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output

    rules = [{"match": "*.bias", "schedules": {"weight_decay": schedules.Constant(warmup=10)}}]
    groups: list[dict[str, Any]] = [
        {"params": {"a.weight": np.ones(1), "a.bias": np.ones(1)}, "rules": rules},
        {"params": {"c": np.ones(1)}, "schedules": {"weight_decay": schedules.Step(size=1, gamma=0.5)}},
        {"params": {"d": np.ones(1)}, "schedules": {"weight_decay": None}},
    ]
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD(
            groups, lr=1.0, weight_decay=0.5, schedules={"weight_decay": schedules.Linear(4)}, session=session
        )
        assert optimizer.param_groups[1]["schedules"] == '{"weight_decay": "step(size=1, gamma=0.5)"}'
        assert optimizer.param_groups[2]["schedules"] is None
        zeros = [{"a.weight": np.zeros(1), "a.bias": np.zeros(1)}, {"c": np.zeros(1)}, {"d": np.zeros(1)}]
        for _ in range(2):
            optimizer.step(zeros)
        found = {name: array[0] for name, array in optimizer.weights.items()}
        assert found == pytest.approx(
            {"a.weight": 0.5 * (1 - 0.375), "a.bias": 0.95, "c": 0.5 * 0.75, "d": 0.25}, rel=1e-12
        )
        assert [group.effective for group in session.groups()] == [{"weight_decay": 0.25}, {"weight_decay": 0.125}, {}]
        assert "0.5 now 0.125" in optctl("groups", name)
        assert "now         weight_decay=0.125" in optctl("group", name, "group1")
        optctl("set", name, "group1", 'schedules={"weight_decay": "constant", "lr": "linear(2, start=0.5)"}')
        assert session.groups()[1].effective == {"lr": 0.0}
        change = session.option_changes("group1")[-1]
        assert (change.option, change.before) == ("schedules", '{"weight_decay": "step(size=1, gamma=0.5)"}')
        assert "linear(2, start=0.5)" in optctl("changes", name, "group1")
        optctl("set", name, "group1", "schedules=none")
        assert session.groups()[1].effective == {}


@pytest.mark.parametrize("face", ["torch", "numpy"])
def test_a_state_dict_has_them(server: LocalServer, name: str, face: str) -> None:
    tensor = torch.nn.Parameter(torch.ones(2))
    given: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5, "schedules": {"weight_decay": FALL}}
    with optd.connect(server.address, job=name) as one, optd.connect(server.address, job=f"{name}-2") as two:
        if face == "torch":
            first: Any = optd.torch.AdamW([tensor], session=one, **given)
            second: Any = optd.torch.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1, session=two)
            tensor.grad = torch.ones(2)
            first.step()
        else:
            first, second = (
                optd.AdamW([np.ones(2)], session=one, **given),
                optd.AdamW([np.ones(2)], lr=0.1, session=two),
            )
            first.step([np.ones(2)])
        saved = first.state_dict()
        assert (saved["param_groups"][0]["schedules"], saved["param_groups"][0]["schedule_start"]) == (
            f'{{"weight_decay": "{FALL}"}}',
            -1,
        )
        second.load_state_dict(saved)
        assert two.groups()[0].effective == one.groups()[0].effective == {"weight_decay": 0.5 * fall(1)}
        theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
        if face == "torch":
            theirs.load_state_dict(saved)
            assert theirs.param_groups[0]["weight_decay"] == 0.5


WRONG: dict[str, tuple[Callable[..., optd.Optimizer], Any, type[Exception], str]] = {
    "a slip of the pen": (
        optd.AdamW,
        {"weight_dcay": FALL},
        errors.UnknownOption,
        "adamw: no option 'weight_dcay'; did you mean 'weight_decay'? The scheduled options are lr, betas[0], "
        "betas[1], eps, weight_decay, clip_norm, clip_value, lookahead_alpha",
    ),
    "several numbers": (optd.Adam, {"betas": FALL}, errors.UnknownOption, "did you mean 'betas[0]'?"),
    "a number too many": (optd.Adam, {"betas[2]": FALL}, errors.UnknownOption, "no option 'betas[2]'; did you mean"),
    "no number": (optd.SGD, {"nesterov": FALL}, errors.UnknownOption, "sgd: no option 'nesterov'"),
    "whole numbers": (optd.Muon, {"ns_steps": FALL}, errors.UnknownOption, "muon: no option 'ns_steps'"),
    "what counts once": (
        optd.Adagrad,
        {"initial_accumulator_value": FALL},
        errors.UnknownOption,
        "adagrad: no option 'initial_accumulator_value'",
    ),
    "what is set already": (
        partial(optd.SGD, lr_schedule=FALL),
        {"lr": "linear(3)"},
        errors.InvalidOption,
        "sgd: schedules['lr'] must be left out, as lr_schedule is set, got 'linear(3)'",
    ),
    "the first of betas": (
        partial(optd.Adam, momentum_schedule=FALL),
        {"betas[0]": "linear(3)"},
        errors.InvalidOption,
        "adam: schedules['betas[0]'] must be left out, as momentum_schedule is set",
    ),
    "out of the range": (
        optd.Adam,
        {"betas[1]": "linear(3, end=1.5)"},
        errors.InvalidOption,
        "adam: schedules['betas[1]'] must be one under which betas[1] stays in [0, 1), got 'linear(3, end=1.5)'",
    ),
    "no value": (
        optd.SGD,
        {"clip_norm": FALL},
        errors.InvalidOption,
        "sgd: schedules['clip_norm'] must be left out while clip_norm is None: there is nothing to multiply",
    ),
    "no schedule": (
        optd.SGD,
        {"lr": "cosine(steps=0)"},
        errors.InvalidOption,
        "sgd: schedules must be cosine with steps in [1, inf), for 'lr', got",
    ),
    "a number as a schedule": (
        optd.SGD,
        {"lr": 0.5},
        errors.InvalidOption,
        "sgd: schedules must be a schedule such as",
    ),
    "no object": (optd.SGD, '["lr"]', errors.InvalidOption, "sgd: schedules must be schedules by the names of options"),
    "two for one": (
        optd.SGD,
        '{"lr": "linear(3)", "lr": "linear(4)"}',
        errors.InvalidOption,
        "sgd: schedules must be one schedule for 'lr', and not two",
    ),
    "a single schedule": (optd.SGD, FALL, errors.InvalidOption, "sgd: schedules must be schedules by the names of"),
}


@pytest.mark.parametrize(("make", "value", "kind", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_at_once(
    server: LocalServer, name: str, make: Callable[..., optd.Optimizer], value: Any, kind: type[Exception], says: str
) -> None:
    array = [np.ones((2, 2))]
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(kind) as caught:
            make(array, session=session, schedules=value)
        assert says in str(caught.value)
        optimizer = make(array, session=session)
        optimizer.param_groups[0]["schedules"] = value
        with pytest.raises(kind):
            optimizer.step([np.ones((2, 2))])
        assert session.info().version.version == 0


def test_a_later_change_of_an_option_must_leave_it_in_its_range(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        rising = {"betas[1]": "linear(3, start=0.5, end=1.05)"}
        optimizer = optd.Adam([np.ones(2)], betas=(0.9, 0.9), schedules=rising, session=session)
        optimizer.param_groups[0]["betas"] = (0.9, 0.99)
        with pytest.raises(errors.InvalidOption, match=r"under which betas\[1\] stays in \[0, 1\)"):
            optimizer.step([np.ones(2)])
        rule = [{"match": "param0", "schedules": {"clip_norm": FALL}}]
        with pytest.raises(errors.InvalidRule, match="clip_norm is of a whole group, and so is its schedule"):
            optd.SGD([np.ones(2)], clip_norm=1.0, rules=rule, server=server.address, job=f"{name}-2")


@given(st.data())
def test_every_number_that_may_have_one_is_multiplied_and_nothing_else(data: st.DataObject) -> None:
    algorithm = find_algorithm(data.draw(st.sampled_from(sorted(ALGORITHMS))))
    declared = schedulable(algorithm)
    assume("lr" in declared)  # not of `assign`
    given_: dict[str, Any] = {"lr": 0.1} | ({} if algorithm.name == "lbfgs" else {"clip_norm": 2.0, "clip_value": 3.0})
    base = resolve_options(algorithm, given_)
    usable = [name for name, target in declared.items() if target.of(base) is not None]
    names = data.draw(st.lists(st.sampled_from(usable), min_size=1, unique=True))
    size = data.draw(st.integers(1, 9))
    start = data.draw(st.integers(-5, 5))
    written = schedules.schedules_text({name: schedules.Piecewise((size,), (0.999,)) for name in names})
    try:
        options = resolve_options(algorithm, given_, {"schedules": written, "schedule_start": start})
    except errors.InvalidOption as error:
        assert "stays in" in str(error)
        return
    version = data.draw(st.integers(0, 20))
    now = effective(options, version)
    factor = 0.999 if max(0, version - start) >= size else 1.0
    for name, target in declared.items():
        before, after = target.of(options), target.of(now)
        assert after == (before * factor if name in names and before is not None else before)
    untouched = set(options) - {declared[name].option for name in names}
    assert {name: now[name] for name in untouched} == {name: options[name] for name in untouched}
    assert set(now) - set(options) <= {"lookahead_alpha"}


def test_a_function_is_no_schedule(server, name):
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(
            errors.InvalidRequest, match=r"schedules\['weight_decay'\] must be a schedule, such as .*<function"
        ):
            optd.AdamW([np.zeros(2)], session=session, schedules={"weight_decay": lambda version: 0.5})
        optd.AdamW([np.zeros(2)], session=session)
