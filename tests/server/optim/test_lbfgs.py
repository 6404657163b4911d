"""L-BFGS against `torch.optim.LBFGS`: a table of its own, as its steps ask for loss and gradient at several points.

torch's run is recorded: where it asked, and what it was told. Ours is told the same, so that what the two round
differently is not magnified by the loss, and has to ask at the same points, to end steps at the same ones, and to
remember the same.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from optd_server.optim import option
from optd_server.optim.algorithm import Vector
from optd_server.optim.algorithms.lbfgs import LBFGS, STRONG_WOLFE
from optd_server.optim.iterative import Searches, keep, recall
from optd_server.optim.segment import SegmentState

SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3, 5), (1,), (7,), (2, 1, 3))
SIZES = [math.prod(shape) for shape in SHAPES]
SOMETIMES = 4
"""The parameter that has a gradient at every third point only."""
DERIVED = {"ro", "al", "H_diag"}
"""What follows from the other state."""

Loss = Callable[[Vector], tuple[float, Vector]]
"""A loss and its gradient, in float64."""


def bowl(x: Vector) -> tuple[float, Vector]:
    """A quadratic whose curvature goes from 1 to 3."""
    curvature, away = np.linspace(1, 3, len(x)), x - 0.5
    return float((curvature * away**2).sum() / 2), curvature * away


def valley(x: Vector) -> tuple[float, Vector]:
    """Rosenbrock's, a tenth as steep."""
    down, along = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    gradient = np.zeros_like(x)
    gradient[1:] += 20 * down
    gradient[:-1] -= 40 * down * x[:-1] + 2 * along
    return float((10 * down**2 + along**2).sum()), gradient


def waves(x: Vector) -> tuple[float, Vector]:
    """Not convex: pairs of changes come that are not remembered."""
    return float((np.sin(3 * x) + x**2 / 5).sum()), 3 * np.cos(3 * x) + 0.4 * x


def noisy() -> Loss:
    """A bowl whose gradients and losses are not of one function: searches take every way that they have.

    It does not converge: where nothing but rounding is left of a gradient, directions are made of that.
    """
    rng = np.random.default_rng(1)

    def loss(x: Vector) -> tuple[float, Vector]:
        value, gradient = bowl(x)
        noise = rng.standard_normal(len(x) + 1)
        return value * (1 + 0.3 * noise[0]), gradient + 0.3 * noise[1:]

    return loss


GRID: Mapping[str, tuple[Any, ...]] = {
    "line_search_fn": (None, STRONG_WOLFE),
    "lr": (1.0, 0.05),
    "max_iter": (20, 3, 1),
    "max_eval": (None, 5),
    "history_size": (100, 2),
    "tolerance_grad": (1e-7, 0.3),
    "tolerance_change": (1e-9, 1e-3),
}
COMBINATIONS = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


@dataclass
class Answer:
    """What torch was told about a point."""

    point: Vector
    loss: float
    gradients: list[Vector | None]


@dataclass
class Recording:
    """Steps of torch's: the answers of each, the weights at its end, and the state then."""

    options: Mapping[str, Any]
    dtype: type
    start: Vector = field(default_factory=lambda: np.empty(0))
    steps: list[tuple[list[Answer], Vector, dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def of(cls, loss: Loss, options: Mapping[str, Any], dtype: type, steps: int, *, whole: bool = False) -> "Recording":
        """`whole`: all parameters always have a gradient."""
        made = cls(options, dtype)
        made.start = np.random.default_rng(0).standard_normal(sum(SIZES)).astype(dtype)
        parts = np.split(made.start.copy(), np.cumsum(SIZES)[:-1])
        parameters = [
            torch.nn.Parameter(torch.from_numpy(part.reshape(shape))) for part, shape in zip(parts, SHAPES, strict=True)
        ]
        optimizer = torch.optim.LBFGS(parameters, **options)
        asked = 0

        def weights() -> Vector:
            return np.concatenate([each.detach().numpy().reshape(-1) for each in parameters])

        def closure() -> float:
            nonlocal asked
            asked += 1
            point = weights()
            value, gradient = loss(point.astype(np.float64))
            parts: list[Vector | None] = list(np.split(gradient.astype(dtype), np.cumsum(SIZES)[:-1]))
            if asked % 3 and not whole:
                parts[SOMETIMES] = None
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = None if part is None else torch.from_numpy(part.copy()).reshape(parameter.shape)
            answers.append(Answer(point, value, parts))
            return value

        for _ in range(steps):
            answers: list[Answer] = []
            optimizer.step(closure)
            made.steps.append((answers, weights(), optimizer.state_dict()["state"][0].copy()))
            for name, value in made.steps[-1][2].items():
                made.steps[-1][2][name] = _copied(value)
        return made


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


class Replay:
    """Ours, told the same."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.dtype = recording, recording.dtype
        self.segment = SegmentState(SIZES, recording.dtype, shapes=SHAPES)
        self.searches = Searches()
        self.options = option.resolve(LBFGS.options, recording.options)
        self.weights = recording.start
        self.asked_as_often = True

    def run(self, tolerance: float) -> None:
        for number, (answers, end, state) in enumerate(self.recording.steps):
            for place, answer in enumerate(answers):
                self.close(self.weights, answer.point, tolerance, f"point {place} of step {number}")
                done = self.move(answer)
                assert done == (place == len(answers) - 1), f"at point {place} of step {number}, {self.options}"
                assert self.searches.is_under_way != done
            self.close(self.weights, end, tolerance, f"the end of step {number}")
            self.check_state(state, tolerance)

    def errors(self, state_tolerance: float | None = None) -> list[float]:
        """How far the points of each step are from torch's, which has begun as that one has; may check the state."""
        found: list[float] = []
        for answers, end, state in self.recording.steps:
            for place, answer in enumerate(answers):
                found.append(float(np.abs(self.weights - answer.point).max() / self.scale(answer.point)))
                if self.move(answer) != (place == len(answers) - 1):
                    self.asked_as_often = False
                    break
            if state_tolerance is not None:
                self.check_state(state, state_tolerance)
            self.follow(end, state)
        return found

    def follow(self, end: Vector, state: dict[str, Any]) -> None:
        """Goes on where torch is."""
        self.searches.abandon()
        self.weights = end
        memory = {
            name: [each.numpy() for each in value] if isinstance(value, list) else np.asarray(value)
            for name, value in state.items()
            if name not in DERIVED
        }
        keep(memory, LBFGS, self.options, self.segment)

    def scale(self, expected: np.ndarray) -> float:
        return float(max(np.abs(expected).max(initial=0), np.abs(self.recording.start).max()))

    def move(self, answer: Answer) -> bool:
        # What lies where there is no gradient is not to be looked at.
        gradients = [
            np.full(size, np.nan, self.dtype) if gradient is None else gradient
            for gradient, size in zip(answer.gradients, SIZES, strict=True)
        ]
        before, out = self.weights.copy(), np.full_like(self.weights, np.nan)
        done = self.searches.move(
            LBFGS,
            self.options,
            self.segment,
            weights=self.weights,
            gradient=np.concatenate(gradients),
            out=out,
            present=np.array([gradient is not None for gradient in answer.gradients]),
            loss=answer.loss,
        )
        np.testing.assert_array_equal(self.weights, before)
        self.weights = out
        return done

    def check_state(self, state: dict[str, Any], tolerance: float) -> None:
        ours = recall(LBFGS, self.options, self.segment)
        assert {*state} - DERIVED == {*ours} - {"t_is_tensor"} - ({"old_dirs", "old_stps"} - {*state})
        for name in {*state} - DERIVED:
            if name in ("old_dirs", "old_stps"):
                assert len(ours[name]) == len(state[name])
                pairs = zip(ours[name], state[name], strict=True)
            else:
                pairs = zip([ours[name]], [state[name]], strict=True)
            for found, expected in pairs:
                # Of differences and products of what is compared above.
                self.close(np.asarray(found), np.asarray(expected), 10 * tolerance, name)
        assert ours.get("t_is_tensor") in (None, isinstance(state.get("t"), torch.Tensor))

    def close(self, found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
        """Relative to the largest number of the vector, or of the weights at first."""
        message = f"{what}, {dict(self.recording.options)}"
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * self.scale(expected), err_msg=message)


@pytest.mark.slow
def test_every_combination_of_options_steps_as_in_torch() -> None:
    """Each step from where torch began it. Directions divide by differences of sums, which magnifies some roundings."""
    errors = []
    for options in COMBINATIONS:
        replay = Replay(Recording.of(noisy(), options, np.float64, steps=6))
        errors += replay.errors(state_tolerance=1e-9)
        assert replay.asked_as_often, options
    assert np.percentile(errors, 99) < 1e-12
    assert max(errors) < 1e-9


@pytest.mark.slow
def test_every_combination_of_options_steps_as_in_torch_in_float32() -> None:
    """But for where the last digit decides which way a search goes."""
    replays = [Replay(Recording.of(noisy(), options, np.float32, steps=6)) for options in COMBINATIONS]
    errors = [error for replay in replays for error in replay.errors()]
    assert np.median(errors) < 1e-6
    assert np.percentile(errors, 90) < 1e-5
    assert sum(replay.asked_as_often for replay in replays) > 0.6 * len(replays)


@pytest.mark.parametrize("search", [None, STRONG_WOLFE])
def test_a_hundred_steps_are_torchs(search: str | None) -> None:
    options = {"lr": 0.1, "max_iter": 2, "line_search_fn": search, "history_size": 10}
    Replay(Recording.of(noisy(), options, np.float64, steps=100)).run(1e-10)


@pytest.mark.parametrize("loss", [bowl, valley, waves], ids=lambda each: each.__name__)
def test_it_finds_the_minimum_that_torch_finds(loss: Loss) -> None:
    """Told about its own points, not torch's."""
    for dtype, tolerance in ((np.float64, 1e-6), (np.float32, 1e-3)):
        recording = Recording.of(loss, {"line_search_fn": STRONG_WOLFE}, dtype, steps=12, whole=True)
        replay = Replay(recording)
        for _ in range(12):
            done = False
            while not done:
                value, gradient = loss(replay.weights.astype(np.float64))
                parts = np.split(gradient.astype(dtype), np.cumsum(SIZES)[:-1])
                done = replay.move(Answer(replay.weights, value, list(parts)))
        _, end, _ = recording.steps[-1]
        replay.close(replay.weights, end, tolerance, "the minimum")


@pytest.mark.parametrize("beyond", [math.inf, math.nan])
def test_a_search_comes_back_from_where_there_is_no_loss(beyond: float) -> None:
    """From where torch's goes on with NaN."""

    def cliff(x: Vector) -> tuple[float, Vector]:
        loss, gradient = bowl(x)
        return (beyond if x.min() < -2.6 else loss), gradient

    options = {"line_search_fn": STRONG_WOLFE, "lr": 100.0}
    replay = Replay(Recording.of(cliff, options, np.float64, steps=0))
    losses = []
    for _ in range(3):
        done = False
        while not done:
            value, gradient = cliff(replay.weights)
            losses.append(value)
            done = replay.move(Answer(replay.weights, value, list(np.split(gradient, np.cumsum(SIZES)[:-1]))))
    assert not np.isfinite(losses).all()
    np.testing.assert_allclose(replay.weights, 0.5, atol=1e-5)


def test_a_gradient_that_is_flat_ends_a_step_at_once() -> None:
    recording = Recording.of(lambda x: (1.0, np.zeros_like(x)), {}, np.float64, steps=2)
    assert [len(answers) for answers, _, _ in recording.steps] == [1, 1]
    replay = Replay(recording)
    replay.run(0)
    assert set(replay.segment.state) == {"func_evals", "n_iter"}
    np.testing.assert_array_equal(replay.weights, recording.start)


def test_a_step_of_no_elements_is_at_its_end_at_once() -> None:
    segment, nothing = SegmentState([0, 0], np.float32), np.empty(0, np.float32)
    options = option.resolve(LBFGS.options, {})
    everywhere = np.ones(2, bool)
    how = {"weights": nothing, "gradient": nothing, "out": nothing.copy(), "present": everywhere, "loss": 1.0}
    assert Searches().move(LBFGS, options, segment, **how)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits_are_those_of_float32_rounded(dtype: str) -> None:
    """A step begins at the weights, and computes in float32; what is asked about is rounded."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    start = np.random.default_rng(0).standard_normal(sum(SIZES)).astype(kind)
    options = option.resolve(LBFGS.options, {"lr": 0.1, "max_iter": 3})
    narrow, wide = SegmentState(SIZES, kind, shapes=SHAPES), SegmentState(SIZES, np.float32, shapes=SHAPES)
    ours, exact = Searches(), Searches()
    weights, twin = start, start.astype(np.float32)
    for number in range(6):
        value, gradient = bowl(weights.astype(np.float64))
        how = {"gradient": gradient.astype(np.float32), "present": np.ones(len(SIZES), bool), "loss": value}
        out, there = np.empty_like(weights), np.empty_like(twin)
        done = ours.move(LBFGS, options, narrow, weights=weights, out=out, **how)
        assert done == exact.move(LBFGS, options, wide, weights=twin, out=there, **how) == (number % 3 == 2)
        assert out.view(np.uint16).tolist() == there.astype(kind).view(np.uint16).tolist()
        weights, twin = out, (out.astype(np.float32) if done else there)


def test_a_step_that_is_abandoned_has_changed_nothing() -> None:
    recording = Recording.of(bowl, {}, np.float64, steps=1)
    replay = Replay(recording)
    answers = recording.steps[0][0]
    for answer in answers[:3]:
        assert not replay.move(answer)
    assert replay.segment.state == {}
    replay.searches.abandon()
    replay.weights = recording.start
    replay.run(1e-10)


def test_names_and_defaults_are_torchs() -> None:
    theirs = torch.optim.LBFGS([torch.zeros(1)]).defaults
    ours = option.resolve(LBFGS.options, {})
    assert {**ours, "max_eval": ours["max_iter"] * 5 // 4} == theirs
    assert LBFGS.title == "LBFGS"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be in [0, inf), got -0.1"),
        ({"history_size": 0}, "history_size must be in [1, 10000], got 0"),
        ({"line_search_fn": "armijo"}, "line_search_fn must be one of 'strong_wolfe', got 'armijo'"),
        (
            {"line_search_fn": STRONG_WOLFE, "max_eval": 0},
            "max_eval must be at least 1 for line_search_fn='strong_wolfe', got 0",
        ),
    ],
    ids=str,
)
def test_what_torch_breaks_on_is_refused(options: dict[str, Any], message: str) -> None:
    """torch finds out in the constructor, or in one of the first steps."""
    assert str(option.check(LBFGS, options)) == message
    loss = valley if "history_size" in options else noisy()
    with pytest.raises((ValueError, RuntimeError, IndexError, UnboundLocalError)):
        Recording.of(loss, options, np.float64, steps=3)


@pytest.mark.parametrize(
    "options",
    [{"max_iter": 0}, {"max_iter": -1}, {"max_eval": 0}, {"tolerance_grad": -1.0}, {"tolerance_change": -1.0}],
    ids=str,
)
def test_what_torch_takes_is_taken(options: dict[str, Any]) -> None:
    assert option.check(LBFGS, options) is None
    recording = Recording.of(noisy(), options, np.float64, steps=2)
    for _, _, state in recording.steps:
        for name in [name for name, value in state.items() if value is None]:
            del state[name]
    Replay(recording).run(1e-10)
