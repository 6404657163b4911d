"""Schedules: the curves against torch's schedulers, and how they are written."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from optd import schedules
from optd_server.optim.schedules.curves import CURVES
from optd_server.optim.schedules.text import LONGEST, parse

VERSIONS = 40
Torchs = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def warmed(start: float, steps: int, then: Torchs) -> Torchs:
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        warmup = lr_scheduler.LinearLR(optimizer, start, 1.0, steps)
        return lr_scheduler.SequentialLR(optimizer, [warmup, then(optimizer)], [steps])

    return make


TABLE: list[tuple[str, Torchs, int]] = [
    ("constant()", lambda o: lr_scheduler.ConstantLR(o, 1.0), VERSIONS),
    ("constant(warmup=7, warmup_start=0.25)", lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 7), VERSIONS),
    ("linear(20, start=0.5, end=0.1)", lambda o: lr_scheduler.LinearLR(o, 0.5, 0.1, 20), VERSIONS),
    ("cosine(steps=30)", lambda o: lr_scheduler.CosineAnnealingLR(o, 30), 31),
    ("cosine(30, 0.2)", lambda o: lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.2 * 0.3), 31),
    (
        "cosine(steps=30, warmup=5, warmup_start=0.1)",
        warmed(0.1, 5, lambda o: lr_scheduler.CosineAnnealingLR(o, 30)),
        36,
    ),
    ("step(size=6, gamma=0.3)", lambda o: lr_scheduler.StepLR(o, 6, 0.3), VERSIONS),
    ("exponential(gamma=0.9)", lambda o: lr_scheduler.ExponentialLR(o, 0.9), VERSIONS),
    ("polynomial(steps=25, power=2.0)", lambda o: lr_scheduler.PolynomialLR(o, 25, 2.0), VERSIONS),
    ("piecewise(at=(5, 9), factors=(0.1, 0.01))", lambda o: lr_scheduler.MultiStepLR(o, [5, 9], 0.1), VERSIONS),
    ("one_cycle(steps=40)", lambda o: lr_scheduler.OneCycleLR(o, 0.3, 40), 40),
    (
        "one_cycle(40, 0.2, anneal='linear', div_factor=10, final_div_factor=100)",
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.3, 40, pct_start=0.2, anneal_strategy="linear", div_factor=10, final_div_factor=100
        ),
        40,
    ),
    ("one_cycle(40, three_phase=True)", lambda o: lr_scheduler.OneCycleLR(o, 0.3, 40, three_phase=True), 40),
]


@pytest.mark.parametrize(("written", "torchs", "versions"), TABLE, ids=[row[0] for row in TABLE])
def test_factors_are_those_of_torchs_schedulers(written: str, torchs: Torchs, versions: int) -> None:
    curve = parse(written)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps of the scheduler without the optimizer's
        scheduler = torchs(optimizer)
        for version in range(versions):
            expected = optimizer.param_groups[0]["lr"]
            assert 0.3 * curve.factor(version) == pytest.approx(expected, rel=1e-11, abs=1e-16), version
            if version < versions - 1:
                scheduler.step()


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_momentum_cycles_as_in_torch(three_phase: bool, anneal: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.3, 40, anneal_strategy=anneal, three_phase=three_phase)
        curve = parse(str(schedules.MomentumCycle(40, anneal=anneal, three_phase=three_phase)))
        for version in range(40):
            assert 0.95 * curve.factor(version) == pytest.approx(optimizer.param_groups[0]["momentum"], rel=1e-12)
            if version < 39:
                scheduler.step()


ENDS = {
    "linear(5, end=0.5)": 0.5,
    "cosine(5, end=0.25)": 0.25,
    "polynomial(5, end=0.1, warmup=2)": 0.1,
    "momentum_cycle(9)": 1.0,
    "one_cycle(9, div_factor=2, final_div_factor=4)": 0.125,
    "piecewise((1, 2), (0.5, 0.75))": 0.75,
    "exponential(gamma=1)": 1.0,
}


@pytest.mark.parametrize(("written", "factor"), ENDS.items())
def test_a_curve_that_has_ended_stays_there(written: str, factor: float) -> None:
    assert parse(written).factor(10) == pytest.approx(factor, rel=1e-15)
    assert parse(written).factor(10**15) == parse(written).factor(10)


BOUNDS = {
    "constant": (1, 1),
    "constant(warmup=5, warmup_start=3)": (1, 3),
    "linear(9, start=0.5, end=2)": (0.5, 2),
    "linear(9, start=0.5, end=2, warmup=3)": (0, 2),
    "cosine(9, end=0.25)": (0.25, 1),
    "cosine(9, end=4)": (1, 4),
    "polynomial(9, power=0.5, end=0.25)": (0.25, 1),
    "step(1, gamma=0)": (0, 1),
    "exponential(0.0)": (0, 1),
    "one_cycle(20, div_factor=5, final_div_factor=2)": (0.1, 1),
    "one_cycle(20, anneal='linear', three_phase=True, div_factor=5, final_div_factor=2)": (0.1, 1),
    "momentum_cycle(20, pct_start=0.25, low=0.5)": (0.5, 1),
    "piecewise(at=(3, 5), factors=(7, 0.5))": (0.5, 7),
}


@pytest.mark.parametrize(("written", "bounds"), BOUNDS.items())
def test_factors_go_to_their_bounds_and_no_further(written: str, bounds: tuple[float, float]) -> None:
    curve = parse(written)
    assert curve.bounds == pytest.approx(bounds, rel=1e-15)
    factors = [curve.factor(version) for version in range(60)]
    assert (min(factors), max(factors)) == pytest.approx(bounds, rel=1e-12)
    given = dict(curve.arguments)
    own = [curve.schedule.factor(given, version) for version in range(60)]  # type: ignore[arg-type]
    assert min(own) >= bounds[0] - 1e-12
    assert max(own) <= bounds[1] + 1e-12


def given_to(cls: type[schedules.Schedule]) -> dict[str, Any]:
    """A value for each argument without a default."""
    needed: dict[str, Any] = {"steps": 50, "size": 5, "gamma": 0.5, "at": (1, 3), "factors": (0.5, 0.1)}
    own = fields(cls)  # type: ignore[arg-type]
    return {each.name: needed[each.name] for each in own if each.name in needed}


CLASSES = {cls.name: cls for cls in schedules.Schedule.__subclasses__()}


def test_every_curve_has_a_class_with_its_arguments_and_defaults() -> None:
    assert CLASSES.keys() == {curve.name for curve in CURVES}
    for curve in CURVES:
        made = CLASSES[curve.name](**given_to(CLASSES[curve.name]))
        own = {each.name: getattr(made, each.name) for each in fields(made)}  # type: ignore[arg-type]
        assert own == dict(parse(str(made)).arguments)
        assert list(own) == [option.name for option in curve.options]
        assert curve.doc
        assert all(option.doc for option in curve.options)


@given(
    st.builds(
        schedules.Cosine,
        st.integers(1, 10**9),
        st.floats(0, 1e300),
        st.integers(0, 10**9),
        st.floats(0, 1e300, allow_subnormal=True),
    ),
    st.integers(0, 10**12),
)
def test_a_schedule_survives_its_text(schedule: schedules.Cosine, version: int) -> None:
    curve = parse(str(schedule))
    assert dict(curve.arguments) == {each.name: getattr(schedule, each.name) for each in fields(schedule)}
    assert curve.factor(version) >= 0


def test_a_schedule_takes_numbers_and_arrays_of_numpy_and_torch() -> None:
    assert str(schedules.Cosine(np.int64(9), end=np.float64(0.25))) == "cosine(steps=9, end=0.25)"
    assert str(schedules.Cosine(9, end=torch.tensor(0.25))) == "cosine(steps=9, end=0.25)"  # type: ignore[arg-type]
    written = "piecewise(at=(3, 5), factors=(1.5, 0.5))"
    assert str(schedules.Piecewise(np.array([3, 5]), [np.float32(1.5), 0.5])) == written  # type: ignore[arg-type]


def test_texts_that_mean_the_same_are_the_same() -> None:
    assert parse("constant") == parse(" constant( ) ") == parse("constant(warmup=0)")
    assert parse("cosine(10)") == parse("cosine(steps=10, end=0)")


BAD = {
    "": "a schedule such as cosine(steps=1000, warmup=100)",
    "cosin(steps=3)": (
        "a schedule such as cosine(steps=1000, warmup=100) (did you mean 'cosine'? There are constant, linear, cosine, "
        "step, exponential, polynomial, one_cycle, momentum_cycle, piecewise)"
    ),
    "0.5": "a schedule such as cosine(steps=1000, warmup=100)",
    "a.b(1)": "a schedule such as cosine(steps=1000, warmup=100)",
    "cosine": "cosine with steps",
    "cosine(steps=0)": "cosine with steps in [1, inf)",
    "cosine(steps=2.5)": "cosine with steps being a whole number",
    "cosine(steps=10, warm=3)": (
        "cosine with arguments among steps, end, warmup, warmup_start, not 'warm' (did you mean 'warmup'?)"
    ),
    "cosine(10, steps=10)": "cosine with each argument once",
    "cosine(**x)": "cosine with each argument once",
    "cosine(1, 2, 3, 4, 5)": "cosine with at most 4 arguments",
    "cosine(steps=__import__('os'))": "cosine with a plain value as steps",
    "exponential(gamma=1.5)": "exponential with gamma in [0, 1]",
    "step(3, gamma=1.5)": "step with gamma in [0, 1]",
    "cosine(steps=1" + "0" * 400 + ")": "cosine with steps being a whole number of at most 9223372036854775807",
    "piecewise(at=(3, 2), factors=(1, 1))": "piecewise with at being whole numbers, one larger than the other",
    "piecewise(at=(2, 3), factors=(1,))": "piecewise with factors being as many as `at` has",
    "one_cycle(steps=3)": "one_cycle with steps being so large that each phase has a step, with this pct_start",
    "one_cycle(steps=30, anneal='sin')": "one_cycle with anneal being one of 'cos', 'linear'",
    "(" * 500: "a schedule such as cosine(steps=1000, warmup=100)",
    "-" * (LONGEST + 1): f"a schedule of at most {LONGEST} characters",
}


@pytest.mark.parametrize(("written", "says"), BAD.items(), ids=[text[:30] for text in BAD])
def test_what_is_no_schedule_is_told_what_it_must_be(written: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(written)
    assert str(caught.value) == says


@given(st.text(max_size=60) | st.from_regex(r"(cosine|step|piecewise)\([\w=., ()\-+*\"'\[\]]{0,40}\)", fullmatch=True))
def test_no_text_does_harm(written: str) -> None:
    try:
        curve = parse(written)
    except ValueError:
        return
    assert curve.factor(3) >= 0
