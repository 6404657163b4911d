"""Rows of a parameter, pulled by their numbers."""

import numpy as np
import pytest

import optd
from optd import errors
from optd.params.pulled_rows import RowSink
from optd_wire.encodings.registry import exact_for
from optd_wire.row_frames import RowFrame

TABLE = np.arange(60_000, dtype="f4").reshape(30_000, 2)


@pytest.fixture(scope="module")
def optimizer(server):
    params = {"table": TABLE.copy(), "cube": np.arange(24.0).reshape(2, 3, 4), "scale": np.ones((), "f4")}
    with optd.connect(server.address, job="rows", lane="grpc") as session:
        made = optd.SGD(params, lr=1.0, session=session)
        made.push({"table": np.ones_like(TABLE)})  # the arrays here stay as they are
        yield made


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "u8"])
def test_rows_come_in_the_order_of_their_ids(optimizer, dtype):
    ids = np.array([7, 0, 7, 101], dtype)
    for found in (optimizer.pull_rows("table", ids), optimizer.session.pull_rows("table", ids)):
        assert found.dtype == np.float32
        assert np.array_equal(found, TABLE[ids] - 1)


def test_the_arrays_of_params_change_only_where_they_are_written(optimizer):
    table = optimizer.weights["table"]
    assert np.array_equal(table, TABLE)
    table[[5, 3]] = optimizer.pull_rows("table", [5, 3])
    assert np.array_equal(np.flatnonzero((table != TABLE).any(1)), [3, 5])


def test_rows_are_of_any_shape(optimizer):
    found = optimizer.pull_rows("cube", [1])
    assert found.dtype == np.float64
    assert np.array_equal(found, np.arange(12.0, 24.0).reshape(1, 3, 4))
    assert optimizer.pull_rows("cube", []).shape == (0, 3, 4)


def test_many_rows_come_in_many_messages(optimizer):
    ids = np.random.default_rng(0).integers(0, len(TABLE), 300_000)
    assert np.array_equal(optimizer.pull_rows("table", ids), TABLE[ids] - 1)


@pytest.mark.parametrize(
    ("name", "ids", "error", "message"),
    [
        ("table", [0, 30_000], errors.RowOutOfRange, r"'table' must be in \[0, 30000\), got 30000"),
        ("table", [-1], errors.RowOutOfRange, "got -1"),
        ("table", [0.5], errors.NotAnArray, "integers in one dimension, got shape \\(1,\\) of float64"),
        ("table", [True], errors.NotAnArray, "of bool"),
        ("table", [[0]], errors.NotAnArray, "shape \\(1, 1\\)"),
        ("scale", [0], errors.InvalidRequest, "'scale' has no rows"),
        ("chair", [0], errors.UnknownParameter, "'chair'"),
    ],
)
def test_what_are_no_rows(optimizer, name, ids, error, message):
    for ask in (optimizer.pull_rows, optimizer.session.pull_rows):
        with pytest.raises(error, match=message):
            ask(name, ids)


def test_rows_in_fewer_bytes(server, name):
    with optd.connect(server.address, job=name, encoding="bfloat16") as session:
        optimizer = optd.SGD({"w": np.full((3, 2), 1 + 2**-12, "f4")}, lr=1.0, session=session)
        assert (optimizer.pull_rows("w", [2]) == 1).all()
        assert (session.pull_rows("w", [2]) == np.float32(1 + 2**-12)).all()


def sent(ids, values):
    """A row frame of one message of an answer."""
    numbers = np.asarray(values, "<f4")
    return RowFrame(0, 0, len(ids), exact_for(numbers.dtype), np.array(ids, "<u8"), numbers)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ([sent([2, 0], range(4))], errors.UnexpectedStatus, "it sent 2 of 3 rows"),
        ([sent([0, 2, 1], range(6))], errors.UnexpectedStatus, "it sent rows that were not asked for"),
        ([sent([2, 0, 1], range(6)), sent([1], range(2))], errors.UnexpectedStatus, "not asked for"),
        ([sent([2, 0, 1], range(5))], errors.RowFrameLength, "its payload must have 6 elements"),
        ([sent([3], range(2))], errors.RowOutOfRange, "got 3"),
    ],
)
def test_an_answer_of_other_rows_is_none(frames, error, message):
    sink = RowSink("w", 3, np.array([2, 0, 1], np.uint64), np.empty((3, 2), "f4"))
    with pytest.raises(error, match=message):
        for frame in frames:
            sink.write([frame])
        sink.close()


def test_an_answer_comes_in_any_number_of_messages():
    out = np.empty((3, 2), "f4")
    sink = RowSink("w", 3, np.array([2, 0, 2], np.uint64), out)
    sink.write([sent([2], [1, 2]), sent([0], [3, 4])])
    sink.write([sent([2], [1, 2])])
    sink.close()
    assert out.tolist() == [[1, 2], [3, 4], [1, 2]]
