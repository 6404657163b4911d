"""The registry: names, and declarations that hold together."""

import dataclasses

import pytest

from optd_server.optim import option
from optd_server.optim.algorithms import registry
from optd_server.optim.algorithms.assign import ASSIGN
from optd_server.optim.algorithms.sgd import SGD
from optd_server.optim.group_options import GROUP_OPTIONS, group_constraints
from optd_server.optim.job_options import JOB
from optd_server.optim.row_support import RowSupport


@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
def test_an_algorithm_is_found_by_its_exact_name(name) -> None:
    algorithm = registry.find(name)
    assert algorithm is not None
    assert algorithm.name == name
    assert registry.find(name.upper()) is None


@pytest.mark.parametrize(
    "options",
    [*(algorithm.options for algorithm in registry.BUILT_IN), GROUP_OPTIONS, JOB.options],
    ids=[*(algorithm.name for algorithm in registry.BUILT_IN), "group", "job"],
)
def test_every_option_says_in_a_sentence_what_it_means(options) -> None:
    """The client's docstrings and `optctl algorithms` show it as it is."""
    for each in options:
        assert each.doc[0].isupper(), each.name
        assert each.doc.endswith("."), each.name


@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
def test_a_declaration_is_documented_and_names_are_unique(name) -> None:
    algorithm = registry.ALGORITHMS[name]
    assert algorithm.doc
    assert all(option.doc for option in algorithm.options)
    for names in ([o.name for o in algorithm.options], [f.name for f in algorithm.state]):
        assert len(set(names)) == len(names)
    declared = {option.name for option in algorithm.options}
    assert {each.option for each in algorithm.constraints} <= declared


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Adam", "adam"),
        ("AdamW", "adamw"),
        ("adam_w", "adamw"),
        ("sdg", "sgd"),
        ("SGD", "sgd"),
        ("lyon", "lion"),
        ("nothing", None),
    ],
)
def test_an_unknown_name_has_a_nearest(given, meant) -> None:
    assert registry.nearest(given) == meant


def test_a_default_outside_its_range_is_refused() -> None:
    lr, *others = SGD.options
    wrong = dataclasses.replace(SGD, name="mine", options=(dataclasses.replace(lr, default=-1.0), *others))
    with pytest.raises(ValueError, match=r"mine: the default of lr must be in \[0, inf\), got -1"):
        registry.register(wrong)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, None),
        ({"master_weights": True, "schedules": None, "rules": None}, None),
        ({"lr_schedule": "cosine(10)"}, "lr_schedule must be None, as there is no lr"),
        ({"momentum_schedule": "cosine(10)"}, "momentum_schedule must be None, as there is neither momentum nor betas"),
        *(
            ({name: 2}, f"{name} must be None, as assign sets weights to the very values that are pushed")
            for name in ("clip_norm", "clip_value", "lookahead_steps")
        ),
    ],
    ids=str,
)
def test_options_of_every_group_that_would_change_what_is_assigned_are_refused(options, problem) -> None:
    resolved = option.resolve(GROUP_OPTIONS, options)
    broken = [each for each in group_constraints(ASSIGN) if each.broken(resolved)]
    assert [f"{each.option} must be {each.text}" for each in broken] == ([] if problem is None else [problem])


@pytest.mark.parametrize(
    ("base", "rule", "problem"),
    [
        ("muon", RowSupport(), "muon takes rows, which parameterwise algorithms cannot"),
        ("sgd", RowSupport(zero=("decay",)), "sgd takes rows where 'decay' is 0, which is no option of it"),
        (
            "sgd",
            RowSupport(),
            "sgd takes rows, but its 'momentum_buffer' is set by a first step, which has not all rows",
        ),
    ],
)
def test_rows_that_no_step_could_follow_are_refused(base, rule, problem) -> None:
    wrong = dataclasses.replace(registry.ALGORITHMS[base], name=f"{base}_", rows=rule)
    with pytest.raises(ValueError, match=problem.replace(base, f"{base}_", 1)):
        registry.register(wrong)
