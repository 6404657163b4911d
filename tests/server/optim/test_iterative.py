"""A step of several evaluations is plain data between two of them, which can be stored, restored and gone back to."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd_server.optim import option, plain
from optd_server.optim.algorithm import Vector
from optd_server.optim.algorithms.lbfgs import LBFGS, STRONG_WOLFE, Search
from optd_server.optim.iterative import Searches, SearchState, from_fields, to_fields
from optd_server.optim.line_search import Bracketing, Point, Zooming
from optd_server.optim.segment import SegmentState

SIZES = [1, 0, 15, 7]
COUNT = sum(SIZES)
DTYPES = {each: np.dtype(getattr(ml_dtypes, each, each)) for each in ("float32", "float64", "bfloat16")}
HAPPENINGS = ("nothing", "infinite loss", "no loss", "not finite", "written", "ended", "abandoned")
"""What may come with an evaluation: a loss that is no number, a gradient, a closure or a caller that interferes."""


@dataclass
class Journey:
    """Steps along a noisy bowl, so that searches take every way that they have; `between` is called with each state."""

    options: Mapping[str, Any]
    dtype: np.dtype[Any]
    seed: int
    between: Callable[["Journey"], None] = lambda _: None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.segment = SegmentState(SIZES, self.dtype)
        self.searches = Searches()
        self.weights: Vector = self.rng.standard_normal(COUNT).astype(self.dtype)
        self.done: list[bool] = []
        self.path: list[bytes] = []
        """The weights after each evaluation."""

    def go(self, happenings: list[str]) -> "Journey":
        for each in happenings:
            self._evaluate(each)
            self.between(self)
        return self

    def _evaluate(self, happening: str) -> None:
        if happening == "written":
            self.weights = self.weights + (0.1 * self.rng.standard_normal(COUNT)).astype(self.dtype)
            self.searches.note_written_weights()
        if happening == "ended":
            self.searches.end()
        if happening == "abandoned":
            self.searches.abandon()
        at, curvature = self.weights.astype(np.float64), np.linspace(1, 3, COUNT)
        loss = float((curvature * (at - 0.5) ** 2).sum() / 2) * (1 + 0.3 * self.rng.standard_normal())
        gradient = curvature * (at - 0.5) + 0.3 * self.rng.standard_normal(COUNT)
        out = np.empty_like(self.weights)
        done = self.searches.move(
            LBFGS,
            option.resolve(LBFGS.options, self.options),
            self.segment,
            weights=self.weights,
            gradient=gradient.astype(self.segment.dtype),
            out=out,
            present=self.rng.random(len(SIZES)) > 0.2,
            loss={"infinite loss": math.inf, "no loss": math.nan}.get(happening, loss),
            is_finite=happening != "not finite",
        )
        self.weights = out
        self.done.append(done)
        self.path.append(out.tobytes())

    @property
    def memory(self) -> dict[str, tuple[bytes, bytes]]:
        """What the segment remembers, to the bit."""
        state, started = self.segment.state, self.segment.started
        return {name: (array.tobytes(), started[name].tobytes()) for name, array in state.items()}


def restore(journey: Journey) -> None:
    """Go on with nothing but what has been stored: bytes and texts, beside the segment."""
    arrays, texts = to_fields(journey.searches.state, journey.segment)
    stored = {name: (array.dtype.name, array.tobytes()) for name, array in arrays.items()}
    told = json.loads(json.dumps(texts, allow_nan=False))
    again = {name: np.frombuffer(content, dtype) for name, (dtype, content) in stored.items()}
    state = from_fields(again, told, LBFGS, journey.segment)
    same(state, journey.searches.state)
    journey.searches = Searches(state)


def same(one: Any, other: Any) -> None:
    """Both are of one class and have the same bits."""
    assert type(one) is type(other)
    if is_dataclass(one):
        for field in fields(one):
            same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    elif isinstance(one, float | np.generic | np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("search", [None, STRONG_WOLFE])
@settings(deadline=None, max_examples=30)
@given(
    history_size=st.sampled_from([1, 2, 100]),
    max_iter=st.sampled_from([1, 3, 20]),
    lr=st.sampled_from([1.0, 0.05, 30.0]),
    seed=st.integers(0, 1000),
    happenings=st.lists(st.sampled_from(HAPPENINGS), min_size=1, max_size=12),
)
def test_a_step_stored_and_restored_after_every_evaluation_has_the_same_bits(
    dtype: np.dtype[Any],
    search: str | None,
    history_size: int,
    max_iter: int,
    lr: float,
    seed: int,
    happenings: list[str],
) -> None:
    options = {"line_search_fn": search, "history_size": history_size, "max_iter": max_iter, "lr": lr}
    way = [each for happening in happenings for each in ("nothing", "nothing", happening)]
    expected, found = Journey(options, dtype, seed).go(way), Journey(options, dtype, seed, restore).go(way)
    assert found.done == expected.done
    assert found.path == expected.path
    assert found.memory == expected.memory


@pytest.mark.parametrize("search", [None, STRONG_WOLFE])
def test_a_state_that_was_kept_can_be_gone_back_to(search: str | None) -> None:
    """No step changes a state in place."""
    journey = Journey({"line_search_fn": search, "history_size": 3}, DTYPES["float32"], 0).go(["nothing"] * 9)
    while not journey.searches.is_under_way:
        journey.go(["nothing"])
    kept, weights, seen = journey.searches.state, journey.weights, len(journey.path)
    position = journey.rng.bit_generator.state
    segment = SegmentState(
        SIZES,
        np.float32,
        steps=journey.segment.steps.copy(),
        state=dict(journey.segment.state),
        started={name: each.copy() for name, each in journey.segment.started.items()},
        fields=LBFGS.state_of(option.resolve(LBFGS.options, journey.options)),
    )
    journey.go(["nothing"] * 30)
    path = journey.path[seen:]
    journey.searches, journey.weights, journey.segment = Searches(kept), weights, segment
    journey.rng.bit_generator.state = position
    assert journey.go(["nothing"] * 30).path[-30:] == path


def test_every_phase_of_a_step_is_stored_at_some_time() -> None:
    seen: set[type] = set()

    def note(journey: Journey) -> None:
        search = journey.searches.state.search
        seen.add(type(None) if search is None else type(search.line_search))

    Journey({"line_search_fn": STRONG_WOLFE}, DTYPES["float64"], 0, note).go(["nothing"] * 60)
    assert seen == {type(None), Bracketing, Zooming}


def test_vectors_of_the_segment_are_not_stored_twice() -> None:
    journey = Journey({"line_search_fn": STRONG_WOLFE}, DTYPES["float32"], 0)
    while journey.segment.steps[0] < 2 or not journey.searches.is_under_way:
        journey.go(["nothing"])
    arrays, texts = to_fields(journey.searches.state, journey.segment)
    ours = {id(array) for array in journey.segment.state.values()}
    assert not ours & {id(array) for array in arrays.values()}
    assert texts["steps.search.history.of_gradient.0"] == "known old_dirs.0"
    assert len({id(array) for array in arrays.values()}) == len(arrays)


def test_a_python_number_and_a_scalar_of_numpy_come_back_as_what_they_were() -> None:
    gradient = np.arange(3.0)
    for number in (0, 1.5, np.float32(0.1), np.float64(0.1), -0.0, math.inf, -math.nan, np.float32("nan"), -(2**62)):
        arrays, texts = plain.flatten(Point(number, 1.0, gradient, True), "point")
        point = plain.rebuild(arrays, texts, "point", Point)
        same(point, Point(number, 1.0, gradient, True))


@pytest.mark.parametrize("strange", [len, {1: 2}, (1, 2), 1j, object, np.int64(1)], ids=repr)
def test_what_is_not_plain_is_refused(strange: Any) -> None:
    with pytest.raises(TypeError, match=r"steps\.search must be a vector, a number"):
        to_fields(SearchState(strange), SegmentState(SIZES, np.float32))


def lose_array(arrays: dict[str, Any], _: dict[str, str]) -> None:
    del arrays["steps.search.weights"]


def lose_text(_: dict[str, str], texts: dict[str, str]) -> None:
    del texts["steps.has_ended"]


def other_class(_: dict[str, str], texts: dict[str, str]) -> None:
    texts["steps.search"] = "object Journey"


def other_kind(_: dict[str, str], texts: dict[str, str]) -> None:
    texts["steps.search.iterations"] = "complex 1"


def unknown_array(_: dict[str, str], texts: dict[str, str]) -> None:
    texts["steps.search.history.direction"] = "known exp_avg"


@pytest.mark.parametrize("damage", [lose_array, lose_text, other_class, other_kind, unknown_array])
def test_what_is_not_such_a_state_is_refused(damage: Callable[[Any, Any], None]) -> None:
    journey = Journey({}, DTYPES["float32"], 0).go(["nothing"] * 3)
    arrays, texts = to_fields(journey.searches.state, journey.segment)
    damage(arrays, texts)
    with pytest.raises(ValueError, match=r"stored values must have .*'steps\."):
        from_fields(arrays, texts, LBFGS, journey.segment)


def test_a_state_in_the_middle_of_a_step_can_be_made_from_its_parts() -> None:
    journey = Journey({"max_iter": 20}, DTYPES["float32"], 0).go(["nothing"] * 3)
    state = journey.searches.state
    assert isinstance(state.search, Search)
    assert state.search.iterations == 3
    parts = {field.name: getattr(state.search, field.name) for field in fields(Search)}
    made = Searches(SearchState(Search(**parts)))
    assert made.is_under_way
