"""Options: what is wrong with them, beside what is right."""

import math

import numpy as np
import pytest

from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.option import Option, Range, Violation, check, resolve, unknown

NOT_NEGATIVE = "[0, inf)"
BETA = "[0, 1)"
NESTEROV = "false unless momentum > 0 and dampening = 0"

INVALID = [
    ("sgd", {"lr": -0.1}, Violation("lr", NOT_NEGATIVE, "-0.1")),
    ("sgd", {"lr": -1}, Violation("lr", NOT_NEGATIVE, "-1")),
    ("sgd", {"lr": math.nan}, Violation("lr", NOT_NEGATIVE, "nan")),
    ("sgd", {"lr": math.inf}, Violation("lr", NOT_NEGATIVE, "inf")),
    ("sgd", {"lr": 10**400}, Violation("lr", NOT_NEGATIVE, "inf")),
    ("sgd", {"lr": "0.1"}, Violation("lr", "a number", "'0.1'")),
    ("sgd", {"lr": True}, Violation("lr", "a number", "true")),
    ("sgd", {"lr": np.True_}, Violation("lr", "a number", "np.True_")),
    ("sgd", {"lr": None}, Violation("lr", "a number", "None")),
    ("sgd", {"lr": (0.1,)}, Violation("lr", "a number", "(0.1,)")),
    ("sgd", {"momentum": -0.5}, Violation("momentum", NOT_NEGATIVE, "-0.5")),
    ("sgd", {"dampening": math.inf}, Violation("dampening", "(-inf, inf)", "inf")),
    ("sgd", {"weight_decay": np.float32(-1)}, Violation("weight_decay", NOT_NEGATIVE, "-1")),
    ("sgd", {"maximize": 2}, Violation("maximize", "true or false", "2")),
    ("sgd", {"maximize": "yes"}, Violation("maximize", "true or false", "'yes'")),
    ("sgd", {"nesterov": True}, Violation("nesterov", NESTEROV, "true")),
    ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, Violation("nesterov", NESTEROV, "true")),
    ("adam", {"betas": (0.9, 1.3)}, Violation("betas[1]", BETA, "1.3")),
    ("adam", {"betas": [1, 0.999]}, Violation("betas[0]", BETA, "1")),
    ("adam", {"betas": np.array([0.9, -0.1])}, Violation("betas[1]", BETA, "-0.1")),
    ("adam", {"betas": (0.9, math.nan)}, Violation("betas[1]", BETA, "nan")),
    ("adam", {"betas": (0.9, "x")}, Violation("betas[1]", "a number", "'x'")),
    ("adam", {"betas": (0.9, False)}, Violation("betas[1]", "a number", "false")),
    ("adam", {"betas": (0.9,)}, Violation("betas", "2 numbers", "(0.9,)")),
    ("adam", {"betas": (0.9, 0.99, 0.999)}, Violation("betas", "2 numbers", "(0.9, 0.99, 0.999)")),
    ("adam", {"betas": 0.9}, Violation("betas", "2 numbers", "0.9")),
    ("adam", {"eps": -1e-8}, Violation("eps", NOT_NEGATIVE, "-1e-08")),
    ("adam", {"decoupled_weight_decay": 0.1}, Violation("decoupled_weight_decay", "true or false", "0.1")),
    ("adamw", {"weight_decay": -0.01}, Violation("weight_decay", NOT_NEGATIVE, "-0.01")),
    # The first in the order of the declaration, ranges before rules.
    ("adam", {"eps": -1, "lr": -2}, Violation("lr", NOT_NEGATIVE, "-2")),
    ("sgd", {"nesterov": True, "maximize": 0.5}, Violation("maximize", "true or false", "0.5")),
]

VALID = [
    ("sgd", {}),
    ("sgd", {"lr": 0}),
    ("sgd", {"lr": np.float64(0.1), "momentum": np.int64(2), "nesterov": np.False_}),
    ("sgd", {"dampening": -3.0, "momentum": 0.9}),
    ("sgd", {"nesterov": True, "momentum": 0.9}),
    ("adam", {"betas": (0, 0.0), "eps": 0}),
    ("adam", {"betas": [0.9, math.nextafter(1, 0)]}),
    ("adam", {"betas": np.array([0.5, 0.9], np.float32)}),
    ("adamw", {"weight_decay": 5, "amsgrad": True, "maximize": True}),
    ("adamw", {"amsgrad": 1, "maximize": 0}),
]


@pytest.mark.parametrize(("name", "options", "violation"), INVALID)
def test_an_invalid_option_is_named_with_its_bound_and_value(name, options, violation) -> None:
    assert check(ALGORITHMS[name], options) == violation


@pytest.mark.parametrize(("name", "options"), VALID)
def test_a_valid_option_is_accepted_and_resolved_options_stay_valid(name, options) -> None:
    algorithm = ALGORITHMS[name]
    assert check(algorithm, options) is None
    resolved = resolve(algorithm.options, options)
    assert check(algorithm, resolved) is None
    assert resolve(algorithm.options, resolved) == resolved


@pytest.mark.parametrize(
    ("violation", "text"),
    [
        (Violation("betas[0]", "[0, 1)", "1.3"), "betas[0] must be in [0, 1), got 1.3"),
        (Violation("lr", "a number", "'x'"), "lr must be a number, got 'x'"),
        (Violation("nesterov", NESTEROV, "true"), f"nesterov must be {NESTEROV}, got true"),
    ],
)
def test_a_violation_reads_as_a_sentence(violation, text) -> None:
    assert str(violation) == text


def test_a_long_value_is_cut_short() -> None:
    violation = check(ALGORITHMS["sgd"], {"lr": "x" * 10_000})
    assert violation is not None
    assert len(violation.value) == 64


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_declared_bound_is_kept(name) -> None:
    algorithm = ALGORITHMS[name]
    for option in algorithm.options:
        for bounds in option.entries or (option.range,):
            for bound, opened, outward in (
                (bounds.low, bounds.low_open, -math.inf),
                (bounds.high, bounds.high_open, math.inf),
            ):
                if bound is not None:
                    assert bounds.holds(bound) != opened
                    assert not bounds.holds(math.nextafter(bound, outward))
                    assert bounds.holds(math.nextafter(bound, -outward))
            assert not bounds.holds(math.nan)
            for endless in (math.inf, -math.inf):
                assert bounds.holds(endless) == bounds.infinite


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({}, "(-inf, inf)"),
        ({"low": 0}, "[0, inf)"),
        ({"low": 0.0, "low_open": True}, "(0, inf)"),
        ({"low": 0, "high": 1, "high_open": True}, "[0, 1)"),
        ({"high": 0.5}, "(-inf, 0.5]"),
        ({"infinite": True}, "[-inf, inf]"),
        ({"low": 0, "infinite": True}, "[0, inf]"),
    ],
)
def test_a_range_reads_as_an_interval(bounds, text) -> None:
    assert Option("x", "float", 0.0, Range(**bounds)).range_text == text


def test_resolved_options_are_complete_ordered_and_plain() -> None:
    given = {"amsgrad": np.True_, "betas": [0, np.float32(0.5)], "lr": np.int64(1)}
    resolved = resolve(ALGORITHMS["adamw"].options, given)
    assert list(resolved.items()) == [
        ("lr", 1.0),
        ("betas", (0.0, 0.5)),
        ("eps", 1e-8),
        ("weight_decay", 1e-2),
        ("amsgrad", True),
        ("maximize", False),
    ]
    betas = resolved["betas"]
    assert isinstance(betas, tuple)
    values = [resolved["lr"], *betas, resolved["amsgrad"]]
    assert [type(value) for value in values] == [float, float, float, bool]


def test_a_name_that_is_not_declared_is_never_dropped() -> None:
    with pytest.raises(KeyError, match="learning_rate"):
        resolve(ALGORITHMS["sgd"].options, {"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("sgd", "learning_rate", "lr"),
        ("sgd", "learning-rate", "lr"),
        ("sgd", "LR", "lr"),
        ("sgd", "momentom", "momentum"),
        ("sgd", "wd", "weight_decay"),
        ("sgd", "weightdecay", "weight_decay"),
        ("sgd", "nestrov", "nesterov"),
        ("adam", "beta1", "betas"),
        ("adam", "beta2", "betas"),
        ("adam", "epsilon", "eps"),
        ("adam", "ams_grad", "amsgrad"),
        ("adam", "decoupled", "decoupled_weight_decay"),
        # A synonym counts only where its target is declared.
        ("sgd", "beta1", None),
        ("sgd", "zzz", None),
        ("sgd", "", None),
        ("sgd", "lr" * 1_000, None),
    ],
)
def test_an_unknown_option_names_the_nearest(name, given, meant) -> None:
    declared = ALGORITHMS[name].options
    assert unknown(declared, {"lr": 0.1, given: 1, "other": 2}) == (given, meant)


def test_nothing_is_unknown_among_declared_options() -> None:
    assert unknown(ALGORITHMS["sgd"].options, {"lr": 0.1, "momentum": 0.9}) is None
