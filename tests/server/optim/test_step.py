"""The driver: however parameters lie, come and go, each is updated as if it were alone."""

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd_server.optim import option, runs
from optd_server.optim.algorithm import Algorithm, Block
from optd_server.optim.registry import ALGORITHMS
from optd_server.optim.step import SegmentState, apply

# Thresholds under which a few hundred elements take every path.
PATHS = {
    "as shipped": {"BLOCK": runs.BLOCK},
    "runs only": {"SHORT": 0, "BLOCK": 16},
    "gathered only": {"SHORT": 1 << 40, "MANY": 0, "BLOCK": 16},
    "both": {"SHORT": 5, "MANY": 2, "BLOCK": 16},
}


@dataclasses.dataclass
class Training:
    """An algorithm, its options, a layout, and for each step which parameters have a gradient."""

    algorithm: Algorithm
    options: list[dict[str, Any]]
    sizes: list[int]
    present: list[np.ndarray]
    dtype: np.dtype
    seed: int

    def gradients(self) -> list[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        return [rng.standard_normal(sum(self.sizes)).astype(self.dtype) for _ in self.present]

    def weights(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 1).standard_normal(sum(self.sizes)).astype(self.dtype)


def option_values(declared: option.Option) -> st.SearchStrategy[Any]:
    """Mild values of a declared option, so that a new algorithm needs nothing here."""
    if declared.kind == "bool":
        return st.booleans()
    mild = [x for x in (0.0, 0.1, 0.7, 0.9) if declared.holds(x)]
    if declared.kind == "floats":
        return st.tuples(*[st.sampled_from(mild)] * (declared.length or 2))
    return st.sampled_from([declared.default, *mild])


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    algorithm = ALGORITHMS[draw(st.sampled_from(sorted(ALGORITHMS)))]
    combination = st.fixed_dictionaries({o.name: option_values(o) for o in algorithm.options}).filter(
        lambda options: option.check(algorithm, options) is None
    )
    sizes = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 7, 40]), max_size=30))
    masks = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))
    present = [np.array(draw(masks), np.bool_) for _ in range(draw(st.integers(1, 4)))]
    options = draw(st.lists(combination, min_size=1, max_size=2))
    # Options change in the middle: fields appear late, and are fresh for some parameters only.
    schedule = [options[i * len(options) // len(present)] for i in range(len(present))]
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
    return Training(algorithm, schedule, sizes, present, dtype, draw(st.integers(0, 1000)))


def run(training: Training, threads: int = 1) -> tuple[np.ndarray, SegmentState]:
    segment = SegmentState(training.sizes, training.dtype)
    weights = training.weights()
    for options, present, gradient in zip(training.options, training.present, training.gradients(), strict=True):
        given_weights, given_gradient = weights.copy(), gradient.copy()
        out = np.full_like(weights, np.nan)
        resolved = option.resolve(training.algorithm.options, options)
        apply(
            training.algorithm,
            [resolved],
            segment,
            weights=weights,
            gradient=gradient,
            out=out,
            present=present,
            threads=threads,
        )
        np.testing.assert_array_equal(weights, given_weights)
        np.testing.assert_array_equal(gradient, given_gradient)
        assert not np.isnan(out).any(), "an element of out was not written"
        weights = out
    return weights, segment


def run_naively(training: Training) -> tuple[np.ndarray, SegmentState]:
    """One parameter at a time, with arrays and coefficients of its own."""
    segment = SegmentState(training.sizes, training.dtype)
    weights = training.weights()
    for options, present, gradient in zip(training.options, training.present, training.gradients(), strict=True):
        resolved = option.resolve(training.algorithm.options, options)
        segment.ensure(training.algorithm, [resolved])
        fields = training.algorithm.fields(resolved)
        for i in np.flatnonzero(present):
            here = slice(segment.offsets[i], segment.offsets[i] + segment.sizes[i])
            segment.steps[i] += 1
            exact = training.algorithm.coefficients(resolved, int(segment.steps[i]))
            rounded = [training.dtype.type(x) if isinstance(x, float) else x for x in exact]
            block = Block(
                weights=weights[here].copy(),
                gradient=gradient[here].copy(),
                out=np.empty(segment.sizes[i], training.dtype),
                state={field.name: segment.state[field.name][here] for field in fields},
                scratch=tuple(np.empty(segment.sizes[i], training.dtype) for _ in range(training.algorithm.scratch)),
                fresh=any(field.seeded and not segment.started[field.name][i] for field in fields),
            )
            training.algorithm.update(type(exact)(*rounded), block)
            weights[here] = block.out
            for field in fields:
                segment.started[field.name][i] = True
    return weights, segment


def assert_same_bits(ours: tuple[np.ndarray, SegmentState], expected: tuple[np.ndarray, SegmentState]) -> None:
    np.testing.assert_array_equal(ours[0].view(np.uint8), expected[0].view(np.uint8))
    np.testing.assert_array_equal(ours[1].steps, expected[1].steps)
    assert ours[1].state.keys() == expected[1].state.keys()
    for name, array in expected[1].state.items():
        np.testing.assert_array_equal(ours[1].state[name].view(np.uint8), array.view(np.uint8))
        np.testing.assert_array_equal(ours[1].started[name], expected[1].started[name])


@settings(deadline=None, max_examples=150)
@given(trainings(), st.sampled_from(sorted(PATHS)), st.sampled_from([1, 2]))
def test_every_path_gives_the_bits_of_one_parameter_at_a_time(training, path, threads) -> None:
    expected = run_naively(training)
    with mock.patch.multiple(runs, **PATHS[path]):
        assert_same_bits(run(training, threads), expected)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_bits_do_not_depend_on_the_number_of_threads(name) -> None:
    sizes = [200_001, 0, 1, *[3] * 100, 100_000]
    rng = np.random.default_rng(5)
    present = [rng.random(len(sizes)) < 0.7 for _ in range(3)] + [np.ones(len(sizes), np.bool_)]
    training = Training(ALGORITHMS[name], [{"lr": 0.1}] * 4, sizes, present, np.dtype(np.float32), 5)
    expected = run(training)
    for threads in (2, 5):
        assert_same_bits(run(training, threads), expected)


def prepared(name: str = "adam", sizes: tuple[int, ...] = (3, 0, 2), **options: Any) -> dict[str, Any]:
    algorithm = ALGORITHMS[name]
    count = sum(sizes)
    return {
        "algorithm": algorithm,
        "options": [option.resolve(algorithm.options, options)],
        "segment": SegmentState(sizes, np.float32),
        "weights": np.ones(count, np.float32),
        "gradient": np.ones(count, np.float32),
        "out": np.full(count, np.nan, np.float32),
    }


def test_an_absent_parameter_keeps_weights_state_and_count_whatever_its_gradient_holds() -> None:
    call = prepared()
    call["gradient"][3:] = np.nan
    apply(**call, present=np.array([True, True, False]))
    assert (call["out"][:3] < 1).all()
    assert (call["out"][3:] == 1).all()
    segment = call["segment"]
    assert segment.steps.tolist() == [1, 1, 0]
    assert segment.started["exp_avg"].tolist() == [True, True, False]
    assert (segment.state["exp_avg"][3:] == 0).all()


def test_a_step_without_parameters_does_nothing() -> None:
    apply(**prepared(sizes=()))


def test_a_snapshot_that_nobody_may_write_can_be_stepped() -> None:
    call = prepared()
    call["weights"].flags.writeable = False
    apply(**call)
    assert not np.isnan(call["out"]).any()


def test_a_kernel_cannot_write_weights_or_gradient() -> None:
    def careless(_: Any, block: Block) -> None:
        block.gradient[:] = 0

    call = prepared()
    call["algorithm"] = dataclasses.replace(call["algorithm"], update=careless)
    with pytest.raises(ValueError, match="read-only"):
        apply(**call)
    assert (call["gradient"] == 1).all()


def test_an_error_on_another_thread_is_raised_when_all_have_stopped_and_counts_no_step() -> None:
    def failing(_: Any, block: Block) -> None:
        if len(block.weights) == 2:
            raise ArithmeticError("here")
        block.out[:] = 0

    call = prepared(sizes=(4, 2))
    call["algorithm"] = dataclasses.replace(call["algorithm"], update=failing)
    call["segment"].steps[1] = 7
    with pytest.raises(ArithmeticError, match="here"):
        apply(**call, threads=2)
    assert call["segment"].steps.tolist() == [0, 7]
    assert not call["segment"].started["exp_avg"].any()


def test_coefficients_of_other_kinds_than_floats_keep_parameters_apart() -> None:
    """A formula that changes with the step count, as RAdam's does, says so with a bool."""

    class Coefficients(tuple[float, bool]):
        def __new__(cls, scale: float, late: bool) -> "Coefficients":
            return super().__new__(cls, (scale, late))

    def update(c: Coefficients, block: Block) -> None:
        scale, late = c
        assert isinstance(late, bool)
        np.multiply(block.gradient, scale if late else 0, out=block.out)

    call = prepared(sizes=(1,) * 20)
    call["segment"].steps[:] = np.arange(20)
    call["algorithm"] = dataclasses.replace(
        call["algorithm"], update=update, coefficients=lambda _, step: Coefficients(float(step), step > 10)
    )
    apply(**call)
    assert call["out"].tolist() == [step if step > 10 else 0 for step in range(1, 21)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": np.ones(4, np.float32)}, r"weights must be float32 of shape \(5,\), got float32"),
        ({"gradient": np.ones(5)}, "gradient must be float32 of shape .*, got float64"),
        ({"out": np.ones((5, 1), np.float32)}, "out must be float32 of shape"),
        (
            {"present": np.ones(1, np.bool_)},
            r"present must be bool of shape \(3,\), got bool of shape \(1,\)",
        ),
        ({"present": np.ones(3)}, "present must be bool .*, got float64"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_a_wrong_buffer_is_refused(wrong, message) -> None:
    call = prepared() | wrong
    with pytest.raises(ValueError, match=message):
        apply(**call)
    assert call["segment"].steps.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["weights", "gradient"])
def test_out_may_not_share_memory(name) -> None:
    call = prepared()
    call["out"] = call[name][:]
    with pytest.raises(ValueError, match="share memory"):
        apply(**call)


def test_state_is_allocated_only_where_options_need_it() -> None:
    def names(algorithm: str, **options: Any) -> list[str]:
        segment = SegmentState([2, 3], np.float64)
        declared = ALGORITHMS[algorithm]
        segment.ensure(declared, [option.resolve(declared.options, options)])
        assert all(a.shape == (5,) and a.dtype == np.float64 for a in segment.state.values())
        assert all(s.shape == (2,) and not s.any() for s in segment.started.values())
        return sorted(segment.state)

    assert names("sgd") == []
    assert names("sgd", momentum=0.9) == ["momentum_buffer"]
    assert names("adam") == ["exp_avg", "exp_avg_sq"]
    assert names("adamw", amsgrad=True) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def test_a_segment_is_restored_from_its_arrays() -> None:
    call = prepared(amsgrad=True)
    apply(**call)
    segment = call["segment"]
    restored = SegmentState(
        segment.sizes,
        segment.dtype,
        steps=segment.steps.copy(),
        state={name: array.copy() for name, array in segment.state.items()},
        started={name: array.copy() for name, array in segment.started.items()},
    )
    other = dict(call, segment=restored, out=np.empty_like(call["out"]))
    apply(**call)
    apply(**other)
    assert_same_bits((other["out"], restored), (call["out"], segment))
