"""A segment is its fields: one that is made of them, after any step, goes on with the same bits."""

import gc
from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from optd_server.optim import option
from optd_server.optim.algorithm import Iterative, StateField, scalar_field
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.segment import SegmentState
from optd_server.optim.step import Assignments, apply

SHAPES = ((3, 5), (1,), (2, 7), (4, 1))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
STEPPED = {name: each for name, each in ALGORITHMS.items() if not isinstance(each, Iterative)}


class Job:
    """Steps of an algorithm on one segment of two groups, of whose parameters one misses every other gradient."""

    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        self.algorithm, self.rng = ALGORITHMS[name], np.random.default_rng(0)
        fits = [self.algorithm.shape_problem is None or self.algorithm.shape_problem(shape) is None for shape in SHAPES]
        shapes = [shape for shape, fit in zip(SHAPES, fits, strict=True) if fit]
        self.segment = SegmentState(
            [int(np.prod(shape)) for shape in shapes], dtype, shapes=shapes, groups=[1, len(shapes) - 1]
        )
        own = option.resolve(self.algorithm.options, {})
        shared = {"master_weights": True, "lookahead_steps": 2, "lookahead_alpha": 0.5}
        self.options: list[option.Options] = [{**own, **shared}, own]
        self.weights = self.rng.standard_normal(self.segment.count).astype(dtype)
        self.steps = 0
        self.assignments = Assignments()

    def step(self) -> None:
        present = np.ones(len(self.segment.sizes), np.bool_)
        present[-1] = self.steps % 2
        out = np.empty_like(self.weights)
        apply(
            self.algorithm,
            self.options,
            self.segment,
            weights=self.weights,
            gradient=self.rng.standard_normal(self.segment.count).astype(self.segment.dtype),
            out=out,
            present=present,
            assignments=self.assignments,
        )
        self.weights, self.steps = out, self.steps + 1

    def restore(self) -> None:
        """Make the segment anew, from its fields alone, and lose what is kept beside it."""
        survives = {field.name: getattr(self.segment, field.name) for field in fields(SegmentState)}
        survives["steps"] = survives["steps"].copy()
        for each in ("state", "started"):
            survives[each] = {name: array.copy() for name, array in survives[each].items()}
        declared = [field for options in self.options for field in self.algorithm.state_of(options)]
        self.segment = SegmentState(**survives, fields=declared)
        self.assignments = Assignments()

    @property
    def bits(self) -> list[bytes]:
        arrays = [self.weights, self.segment.steps]
        for name, array in sorted(self.segment.state.items()):
            arrays += [array, self.segment.started[name]]
            arrays += [self.segment.of(name, number) for number in range(len(self.segment.sizes))]
        return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", STEPPED)
def test_a_segment_made_of_its_fields_goes_on_with_the_same_bits(name: str, dtype: str) -> None:
    kept, restored = Job(name, np.dtype(getattr(ml_dtypes, dtype, dtype))), Job(name, np.dtype(dtype))
    for _ in range(6):
        kept.step()
        restored.step()
        restored.restore()
        assert restored.bits == kept.bits


ROWS = StateField("rows", shape=lambda shape: shape[:1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state": {"exp_avg": np.zeros(3, np.float32)}}, r"started must be of the state \['exp_avg'\], got \[\]"),
        (
            {"state": {"exp_avg": np.zeros(3)}, "started": {"exp_avg": 0}},
            r"must have shape \(34,\), got \(3,",
        ),
        ({"state": {"t": np.zeros(34)}, "started": {"t": 0}, "fields": [scalar_field("t", float)]}, r"shape \(4,\)"),
        ({"state": {"rows": np.zeros(4)}, "started": {"rows": 0}, "fields": [ROWS]}, r"shape \(10,\), got \(4,"),
    ],
    ids=["not started", "elementwise", "scalar", "of a shape of its own"],
)
def test_state_that_does_not_fit_the_layout_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentState(SIZES, np.float32, shapes=SHAPES, **given)


def test_what_is_kept_of_a_segment_goes_with_it() -> None:
    job = Job("adam", np.dtype(np.float32))
    job.step()
    assert len(job.assignments._by_segment) == 1
    kept = job.assignments
    del job
    gc.collect()
    assert not kept._by_segment
