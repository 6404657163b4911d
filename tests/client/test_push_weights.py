"""`push_weights()` of the numpy face: the arrays as they are, or other ones in the structure of the params."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.client.frozen import Frozen

import optd
from optd import errors


def test_what_the_arrays_hold_replaces_the_weights_whoever_else_is_there(server, name) -> None:
    with (
        optd.connect(server.address, job=name, worker="w0") as one,
        optd.connect(server.address, job=name, worker="w1") as two,
    ):
        w, b = np.zeros(3), np.zeros(2, ml_dtypes.bfloat16)
        first = optd.SGD({"w": w, "b": b}, lr=1.0, momentum=0.5, session=one)
        second = optd.SGD({"w": np.zeros(3), "b": np.zeros(2, ml_dtypes.bfloat16)}, lr=1.0, session=two)
        first.step({"w": np.ones(3)})
        before = first.state_dict()["state"]
        w[:], b[:] = 4, 5
        first.push_weights()
        second.pull()
        assert second.weights["w"].tolist() == [4, 4, 4]
        assert second.weights["b"].tolist() == [5, 5]
        assert first.version == 1
        after = first.state_dict()["state"]
        np.testing.assert_array_equal(after[0]["momentum_buffer"], before[0]["momentum_buffer"])
        first.step({"w": np.ones(3)})
        assert w.tolist() == [2.5] * 3


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_arrays_that_cannot_be_written_to_are_replaced_by_others(server, name, lane) -> None:
    with optd.connect(server.address, job=name, lane=lane) as session:
        params = {"layers": [{"w": Frozen([1.0, -2.0])}, {"w": Frozen([3.0])}], "scale": np.ones(2)}
        optimizer = optd.SGD(params, lr=1.0, session=session)
        tree = optimizer.params
        clipped = [{"w": Frozen(np.clip(each["w"], 0, 2))} for each in tree["layers"]]
        optimizer.push_weights({"layers": clipped})
        assert optimizer.params["layers"][0]["w"].tolist() == [1, 0]
        assert optimizer.params["layers"][1]["w"].tolist() == [2]
        assert params["scale"].tolist() == [1, 1]
        optimizer.push_weights({"scale": np.zeros(2), "layers.1.w": np.array([7.0])})
        assert params["scale"].tolist() == [0, 0]
        optimizer.step({"layers": [None, {"w": np.ones(1)}]})
        assert session.pull()["layers.1.w"].tolist() == [6]


def test_in_groups(server, name) -> None:
    with optd.connect(server.address, job=name) as session:
        a, b = np.zeros(2), np.zeros(1)
        optimizer = optd.SGD([{"params": [a]}, {"params": {"b": b}}], session=session)
        optimizer.push_weights([[np.ones(2)], {"b": np.full(1, 2.0)}])
        assert (a.tolist(), b.tolist()) == ([1, 1], [2])
        optimizer.push_weights([None, {"b": np.full(1, 3.0)}])
        assert (a.tolist(), b.tolist()) == ([1, 1], [3])


def test_other_workers_steps_come_with_it(server, name) -> None:
    """Of what is not given the current weights are brought."""
    with (
        optd.connect(server.address, job=name, worker="w0") as one,
        optd.connect(server.address, job=name, worker="w1") as two,
    ):
        first, second = (optd.SGD({"w": np.zeros(2), "b": np.zeros(1)}, lr=1.0, session=each) for each in (one, two))
        second.step({"w": np.ones(2), "b": np.ones(1)})
        first.push_weights({"b": np.array([5.0])})
        assert first.weights["w"].tolist() == [-1, -1]
        assert first.weights["b"].tolist() == [5]
        assert first.version == 1


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": ({"w": np.zeros(4)}, errors.ShapeMismatch, r"weights of parameter 'w' must have shape \(3,\), got \(4,\)"),
    "dtype": ({"w": np.zeros(3, "f4")}, errors.DtypeMismatch, "weights of parameter 'w' must have dtype float64"),
    "rows": ({"w": ([0], np.zeros((1,)))}, errors.NotAnArray, "weights of parameter 'w' must be an array or None"),
    "name": ({"v": np.zeros(3)}, errors.UnknownParameter, "'v'"),
    "length": ([np.zeros(3), np.zeros(3)], errors.StructureMismatch, "weights must have|weights: |weights"),
}


@pytest.mark.parametrize(("weights", "kind", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(weights: Any, kind: type[Exception], message: str, server, name) -> None:
    with optd.connect(server.address, job=name) as session:
        w = np.ones(3)
        optimizer = optd.SGD({"w": w}, session=session)
        with pytest.raises(kind, match=message):
            optimizer.push_weights(weights)
        assert session.pull()["w"].tolist() == w.tolist() == [1, 1, 1]
