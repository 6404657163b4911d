"""The driver: however parameters lie, come and go, each is updated as if it were alone."""

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.optim.backends import BACKENDS, COMPILED, ELEMENTWISE

from optd_server.optim import option, runs, shared_coefficients
from optd_server.optim.algorithm import Algorithm, Block, StateField
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.optim.backends.compiled import backend as compiled
from optd_server.optim.step import ASSIGNMENTS, SegmentState, apply, begin

# A backend, and thresholds under which a few hundred elements take every path.
PATHS: dict[str, tuple[Backend, Any, dict[str, int]]] = {
    "numpy as shipped": (BLOCKED, runs, {"BLOCK": runs.BLOCK}),
    "runs only": (BLOCKED, runs, {"SHORT": 0, "BLOCK": 16}),
    "gathered only": (BLOCKED, runs, {"SHORT": 1 << 40, "MANY": 0, "BLOCK": 16}),
    "both": (BLOCKED, runs, {"SHORT": 5, "MANY": 2, "BLOCK": 16}),
    "numba as shipped": (COMPILED, compiled, {"STREAMED_BYTES": compiled.STREAMED_BYTES}),
    "streamed": (COMPILED, compiled, {"STREAMED_BYTES": 0}),
}


UNWRITTEN = 12345.0


@dataclasses.dataclass
class Training:
    """An algorithm, a layout, and for each step the groups' options and which parameters have a gradient."""

    algorithm: Algorithm
    options: list[list[dict[str, Any]]]
    sizes: list[int]
    groups: list[int]
    present: list[np.ndarray]
    dtype: np.dtype
    seed: int

    def gradients(self) -> list[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        gradients = [rng.standard_normal(sum(self.sizes)).astype(self.dtype) for _ in self.present]
        for gradient in gradients:
            gradient[::5] *= 0  # of both signs
        return gradients

    def weights(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 1).standard_normal(sum(self.sizes)).astype(self.dtype)


def option_values(declared: option.Option) -> st.SearchStrategy[Any]:
    """Mild values of a declared option, so that a new algorithm needs nothing here."""
    if declared.kind == "bool":
        return st.booleans()
    if declared.kind == "floats":
        return st.tuples(*map(numbers, declared.entries))
    if declared.kind == "text":
        return st.sampled_from([declared.default, *declared.choices])
    return st.just(declared.default) | numbers(declared.range)


def numbers(bounds: option.Range) -> st.SearchStrategy[Any]:
    return st.sampled_from([x for x in (0.0, 0.1, 0.7, 0.9, 1.0, 2.0) if bounds.holds(x)])


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    algorithm = ELEMENTWISE[draw(st.sampled_from(sorted(ELEMENTWISE)))]
    combination = st.fixed_dictionaries({o.name: option_values(o) for o in algorithm.options}).filter(
        lambda options: option.check(algorithm, options) is None
    )
    sizes = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 7, 40, 300]), max_size=30))
    ends = sorted(draw(st.lists(st.integers(0, len(sizes)), max_size=4)))
    groups = np.diff([0, *ends, len(sizes)]).tolist()
    masks = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))
    present = [np.array(draw(masks), np.bool_) for _ in range(draw(st.integers(1, 4)))]
    several = st.lists(combination, min_size=len(groups), max_size=len(groups))
    options = draw(st.lists(several | combination.map(lambda one: [one] * len(groups)), min_size=1, max_size=2))
    # Options change in the middle: fields appear late, and are fresh for some parameters only.
    schedule = [options[i * len(options) // len(present)] for i in range(len(present))]
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
    return Training(algorithm, schedule, sizes, groups, present, dtype, draw(st.integers(0, 1000)))


def resolve(algorithm: Algorithm, options: list[dict[str, Any]]) -> list[Any]:
    """Groups that are given the same object share what it resolves to."""
    resolved = {id(each): option.resolve(algorithm.options, each) for each in options}
    return [resolved[id(each)] for each in options]


def run(training: Training, threads: int = 1, backend: Backend = BLOCKED) -> tuple[np.ndarray, SegmentState]:
    segment = SegmentState(training.sizes, training.dtype, groups=training.groups)
    weights = training.weights()
    for options, present, gradient in zip(training.options, training.present, training.gradients(), strict=True):
        given_weights, given_gradient = weights.copy(), gradient.copy()
        out = np.full_like(weights, UNWRITTEN)
        apply(
            training.algorithm,
            resolve(training.algorithm, options),
            segment,
            weights=weights,
            gradient=gradient,
            out=out,
            present=present,
            threads=threads,
            backend=backend,
        )
        np.testing.assert_array_equal(weights, given_weights)
        np.testing.assert_array_equal(gradient, given_gradient)
        assert (out != UNWRITTEN).all(), "an element of out was not written"
        weights = out
    return weights, segment


def run_naively(training: Training) -> tuple[np.ndarray, SegmentState]:
    """One parameter at a time, with arrays and coefficients of its own."""
    segment = SegmentState(training.sizes, training.dtype, groups=training.groups)
    weights = training.weights()
    for options, present, gradient in zip(training.options, training.present, training.gradients(), strict=True):
        by_group = resolve(training.algorithm, options)
        for each, count in zip(by_group, training.groups, strict=True):
            for needed in training.algorithm.fields(each) if count else ():
                if segment.has(needed):
                    segment.allocate(needed)
        of_parameter = [each for each, count in zip(by_group, training.groups, strict=True) for _ in range(count)]
        for i in np.flatnonzero(present):
            resolved = of_parameter[i]
            fields = training.algorithm.fields(resolved)
            here = slice(segment.offsets[i], segment.offsets[i] + segment.sizes[i])
            segment.steps[i] += 1
            names = [field.name for field in training.algorithm.scalars]
            kept = [float(segment.state[name][i]) for name in names if segment.started[name][i]]
            scalars = tuple(kept) if names and kept else training.algorithm.initial_scalars(resolved)
            scalars = tuple(float(np.float32(each)) for each in scalars)
            exact, scalars = training.algorithm.numbers(resolved, int(segment.steps[i]), scalars)
            for name, value in zip(names, scalars, strict=True):
                segment.state[name][i] = value
            for field in fields:
                if field.elementwise and field.initial is not None and not segment.started[field.name][i]:
                    segment.state[field.name][here] = field.initial(resolved)
            rounded = [training.dtype.type(x) if isinstance(x, float) else x for x in exact]
            block = Block(
                weights=weights[here].copy(),
                gradient=gradient[here].copy(),
                out=np.empty(segment.sizes[i], training.dtype),
                state={field.name: segment.state[field.name][here] for field in fields if field.elementwise},
                scratch=tuple(np.empty(segment.sizes[i], training.dtype) for _ in range(training.algorithm.scratch)),
                fresh=any(field.seeded and not segment.started[field.name][i] for field in fields),
            )
            with np.errstate(all="ignore"):
                training.algorithm.update(type(exact)(*rounded), block)
            weights[here] = block.out
            for field in fields:
                segment.started[field.name][i] = True
    return weights, segment


def bits(array: np.ndarray) -> np.ndarray:
    """All bits, but for NaN: which of two NaN an operation hands on is left to the processor."""
    return np.where(np.isnan(array), array.dtype.type(np.nan), array).view(np.uint8)


def assert_same_bits(ours: tuple[np.ndarray, SegmentState], expected: tuple[np.ndarray, SegmentState]) -> None:
    np.testing.assert_array_equal(bits(ours[0]), bits(expected[0]))
    np.testing.assert_array_equal(ours[1].steps, expected[1].steps)
    assert ours[1].state.keys() == expected[1].state.keys()
    for name, array in expected[1].state.items():
        np.testing.assert_array_equal(bits(ours[1].state[name]), bits(array))
        np.testing.assert_array_equal(ours[1].started[name], expected[1].started[name])


@settings(deadline=None, max_examples=150)
@given(trainings(), st.sampled_from(sorted(PATHS)), st.sampled_from([1, 2]))
def test_every_path_gives_the_bits_of_one_parameter_at_a_time(training, path, threads) -> None:
    expected = run_naively(training)
    backend, module, thresholds = PATHS[path]
    with mock.patch.multiple(module, **thresholds):
        assert_same_bits(run(training, threads, backend), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_the_bits_depend_neither_on_the_number_of_threads_nor_on_the_backend(name) -> None:
    sizes = [200_001, 0, 1, *[3] * 100, 100_000]
    rng = np.random.default_rng(5)
    present = [rng.random(len(sizes)) < 0.7 for _ in range(3)] + [np.ones(len(sizes), np.bool_)]
    groups = [1, 52, len(sizes) - 53]
    special = {"rprop": {"step_sizes": (0.0, 0.3)}, "sparse_adam": {"eps": 0.3}}
    second = {"lr": 0.2, **special.get(name, {"weight_decay": 0.3})}
    declared = {each.name for each in ELEMENTWISE[name].options}
    by_group = [{key: value for key, value in each.items() if key in declared} for each in ({"lr": 0.1}, second)]
    options = [[*by_group, by_group[0]]] * 4
    training = Training(ELEMENTWISE[name], options, sizes, groups, present, np.dtype(np.float32), 5)
    expected = run(training)
    for backend in BACKENDS.values():
        for threads in (1, 2, 5):
            assert_same_bits(run(training, threads, backend), expected)
    with mock.patch.object(compiled, "STREAMED_BYTES", 0):
        assert_same_bits(run(training, 2, COMPILED), expected)


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


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
def test_a_step_without_elements_counts(backend, sizes) -> None:
    call = prepared(sizes=sizes)
    apply(**call, backend=backend)
    assert call["segment"].steps.tolist() == [1] * len(sizes)


def assignment_of(call: dict[str, Any]) -> shared_coefficients.SharedCoefficients:
    """What has been kept of a segment's last step."""
    kept = ASSIGNMENTS.of(call["algorithm"], call["options"], call["segment"])
    assert isinstance(kept, shared_coefficients.SharedCoefficients)
    return kept


def test_a_thousand_groups_of_equal_options_are_one_case_and_one_run() -> None:
    call = prepared(sizes=(3,) * 5000)
    call["segment"] = segment = SegmentState([3] * 5000, np.float32, groups=[5] * 1000)
    call["options"] = [dict(call["options"][0]) for _ in range(1000)]
    asked = mock.Mock(side_effect=call["algorithm"].coefficients)
    call["algorithm"] = dataclasses.replace(call["algorithm"], coefficients=asked)
    for _ in range(3):
        apply(**call)
    assert asked.call_count == 3
    assert assignment_of(call).sort(segment, None).starts.tolist() == [0, 15_000]


def test_a_thousand_step_counts_are_worked_out_once() -> None:
    call = prepared(sizes=(3,) * 1000)
    call["segment"].steps[:] = np.random.default_rng(0).permutation(1000)
    asked = mock.Mock(side_effect=call["algorithm"].coefficients)
    call["algorithm"] = dataclasses.replace(call["algorithm"], coefficients=asked)
    apply(**call)
    assert asked.call_count == 1000
    apply(**call)
    assert asked.call_count == 1001  # of the others, the next parameter has just been there


def test_rows_that_are_needed_no_more_are_forgotten() -> None:
    call = prepared(sizes=(2,))
    for _ in range(3000):
        apply(**call)
    assert len(assignment_of(call).table) < 1100


def test_step_counts_that_lie_far_apart_need_no_memory() -> None:
    call = prepared(sizes=(1, 1, 1))
    call["segment"].steps[:] = [0, 1 << 61, 1 << 40]
    apply(**call)
    assert call["segment"].steps.tolist() == [1, (1 << 61) + 1, (1 << 40) + 1]


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
        ({"options": []}, "options must be those of 1 groups, got 0"),
        ({"gradient": np.ones(10, np.float32)[::2]}, "gradient must be contiguous"),
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
        begin(declared, [option.resolve(declared.options, options)], segment, np.ones(5), None)
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


def test_a_part_is_a_group_as_if_it_were_alone() -> None:
    segment = SegmentState([2, 3, 0, 4], np.float32, groups=[1, 0, 3])
    segment.allocate(StateField("exp_avg"))[:] = np.arange(9)
    part = segment.part(2)
    assert (part.sizes.tolist(), part.offsets.tolist(), part.count, part.start) == ([3, 0, 4], [0, 3, 3], 7, 2)
    assert part.state["exp_avg"].tolist() == [2, 3, 4, 5, 6, 7, 8]
    part.steps[:] = [5, 6, 7]
    part.started["exp_avg"][1] = True
    part.allocate(StateField("exp_avg_sq"))[:] = 1
    assert segment.steps.tolist() == [0, 5, 6, 7]
    assert segment.started["exp_avg"].tolist() == [False, False, True, False]
    assert segment.state["exp_avg_sq"].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    empty = segment.part(1)
    assert (empty.count, empty.steps.size, empty.state["exp_avg"].size) == (0, 0, 0)


@pytest.mark.parametrize(("name", "steps"), [("sgd", 0), ("adam", 40_000)])
def test_what_a_plan_remembers_of_steps_is_bounded(name: str, steps: int) -> None:
    """The coefficients stay the same, or have come to rest, so that the table of these does not grow."""
    segment = SegmentState([1], np.float32)
    segment.steps[:] = steps
    weights, gradient, out = np.ones((3, 1), np.float32)
    options = [option.resolve(ALGORITHMS[name].options, {})]
    most = 0
    for _ in range(2 * shared_coefficients.MOST_REMEMBERED + 100):
        apply(ALGORITHMS[name], options, segment, weights=weights, gradient=gradient, out=out)
        shared = ASSIGNMENTS.of(ALGORITHMS[name], options, segment)
        assert isinstance(shared, shared_coefficients.SharedCoefficients)
        most = max(most, sum(map(len, shared._rows)))
    assert shared_coefficients.MOST_REMEMBERED < most < shared_coefficients.MOST_REMEMBERED + 10


def test_groups_tell_their_fewest_and_most_steps() -> None:
    segment = SegmentState([1] * 4, np.float32, groups=[0, 3, 0, 1, 0])
    segment.steps[:] = [4, 2, 9, 5]
    low, high = segment.step_ranges()
    none = np.iinfo(np.int64).max
    assert low.tolist() == [none, 2, none, 5, none]
    assert high.tolist() == [0, 9, 0, 5, 0]


def test_groups_have_to_have_all_parameters() -> None:
    with pytest.raises(ValueError, match="groups must have 3 parameters together, got 2"):
        SegmentState([1, 1, 1], np.float32, groups=[1, 1])
