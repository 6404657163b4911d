"""Arrays that weights could not be written to, at registration or since: refused before anything has changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import optd
from optd import errors
from optd.params.overlap import overlaps_itself


def read_only() -> np.ndarray:
    array = np.ones(3)
    array.flags.writeable = False
    return array


NEVER: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "read-only": (
        read_only,
        errors.NotAnArray,
        "must be an array that can be written to, got a read-only one: give a copy",
    ),
    "broadcast": (
        lambda: np.broadcast_to(np.ones(1), (3,)),
        errors.NotAnArray,
        "must be an array that can be written to, got a read-only one",
    ),
    "strides of 0": (
        lambda: as_strided(np.ones(1), (3,), (0,)),
        errors.NotAnArray,
        "must be an array whose elements do not share memory, got one whose elements overlap in memory",
    ),
    "sliding windows": (
        lambda: sliding_window_view(np.ones(6), 3, writeable=True),
        errors.NotAnArray,
        "must be an array whose elements do not share memory",
    ),
    "complex": (lambda: np.ones(3, complex), errors.UnsupportedDtype, "dtype complex128 is not supported"),
    "a text": (lambda: "weights", errors.NotAnArray, "must be an array, got str"),
}


@pytest.mark.parametrize(("make", "error", "says"), NEVER.values(), ids=NEVER)
def test_what_cannot_be_a_parameter_makes_no_job(make, error, says, server, name):
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(error, match=f"parameter 'w'.*{says}"):
            optd.SGD({"v": np.ones(2), "w": make()}, lr=1.0, session=session)
        with pytest.raises(errors.UnknownJob):
            session.info()
        optimizer = optd.SGD({"v": np.ones(2)}, lr=1.0, session=session)
        with pytest.raises(error, match=f"parameter 'w'.*{says}"):
            optimizer.add_param_group({"params": {"w": make()}})
        assert len(session.info().groups) == len(optimizer.param_groups) == 1


EMPTY: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "a generator that has been used": (lambda: iter(()), errors.EmptyGroup),
    "nothing": (lambda: [], errors.EmptyGroup),
    "a text": (lambda: "weights", errors.NotAnArray),
    "a number": (lambda: 3, errors.NotAnArray),
    "a set": (lambda: {1.0}, errors.NotAnArray),
}


@pytest.mark.parametrize(("make", "error"), EMPTY.values(), ids=EMPTY)
def test_params_that_are_none_make_no_job(make, error, server, name):
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(error, match="params"):
            optd.SGD(make(), lr=1.0, session=session)
        with pytest.raises(errors.UnknownJob):
            session.info()


def freeze(array: np.ndarray, optimizer: Any) -> None:
    array.flags.writeable = False


def reshape(array: np.ndarray, optimizer: Any) -> None:
    array.shape = (3, 2)


def reinterpret(array: np.ndarray, optimizer: Any) -> None:
    array.dtype = np.int64


def replace(array: np.ndarray, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"][0] = np.ones((2, 3))


def replace_all(array: np.ndarray, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"] = [np.ones((2, 3)), np.ones(2)]


def drop(array: np.ndarray, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].pop()


def drop_group(array: np.ndarray, optimizer: Any) -> None:
    optimizer.param_groups.pop()


PLACE = r"param_groups\[0\]\['params'\] \(group 'group0'\) must have the 2 arrays that were registered, got others"
CHANGES = {
    "read-only": (freeze, errors.NotAnArray, "parameter 'w' must be an array that can be written to, got one that has"),
    "reshaped": (reshape, errors.ShapeMismatch, r"array of parameter 'w' must have shape \(2, 3\), got \(3, 2\)"),
    "cast": (reinterpret, errors.DtypeMismatch, "array of parameter 'w' must have dtype float64, got int64"),
    "replaced": (replace, errors.StructureMismatch, PLACE),
    "another list": (replace_all, errors.StructureMismatch, PLACE),
    "fewer": (drop, errors.StructureMismatch, PLACE),
    "no group": (
        drop_group,
        errors.StructureMismatch,
        "param_groups .* must have the 1 groups that are registered, got 0",
    ),
}


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize(("change", "error", "says"), CHANGES.values(), ids=CHANGES)
def test_arrays_that_change_between_steps_change_nothing_on_the_server(change, error, says, zero_copy, server, name):
    weights, bias = np.ones((2, 3)), np.ones(2)
    with optd.connect(server.address, job=name, lane="grpc") as session:
        optimizer = optd.SGD({"w": weights, "b": bias}, lr=0.5, session=session, zero_copy=zero_copy)
        gradients = {"w": np.ones((2, 3)), "b": np.ones(2)}
        optimizer.step(gradients)
        change(weights, optimizer)
        for call in (optimizer.step, optimizer.push):
            with pytest.raises(error, match=says):
                call(gradients)
        with pytest.raises(error, match=says):
            optimizer.pull()
        assert session.info().version.version == 1
        held = session.pull()
        assert (held["w"] == 0.5).all()
        assert bias.tolist() == held["b"].tolist() == [0.5, 0.5]


def test_an_array_may_be_changed_back(server, name):
    weights = np.ones(2)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": weights}, lr=0.5, session=session)
        weights.flags.writeable = False
        with pytest.raises(errors.NotAnArray):
            optimizer.step({"w": np.ones(2)})
        weights.flags.writeable = True
        optimizer.step({"w": np.ones(2)})
        assert weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shape", [(), (4,), (0, 3), (3, 1, 2), (2, 3, 4)])
def test_overlap_is_what_looking_at_every_address_finds(shape):
    rng = np.random.default_rng(len(shape))
    for _ in range(200):
        strides = tuple(int(each) for each in rng.integers(-9, 10, len(shape)))
        offsets = sum(np.indices(shape)[axis] * stride for axis, stride in enumerate(strides)) if shape else np.zeros(1)
        expected = len(np.unique(offsets)) < np.size(offsets)
        assert overlaps_itself(shape, strides, 1) == expected, strides
