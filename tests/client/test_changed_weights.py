"""After a step of rows only what has changed travels; whatever happened in between, the arrays hold the weights."""

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd.transport.server_calls import ServerCalls
from optd_wire.row_frames import RowFrame

SHAPE = (20_000, 4)
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


@pytest.fixture
def received(monkeypatch):
    """How many elements of weights have come in answers of steps, and how many of them as rows."""
    counts = [0, 0]
    answers = ServerCalls._step_answers

    def counted(self, stream, timeout):
        for message, frames in answers(self, stream, timeout):
            for frame in frames:
                rows = isinstance(frame, RowFrame)
                counts[rows] += frame.count * (SHAPE[1] if rows else 1)
            yield message, frames

    monkeypatch.setattr(ServerCalls, "_step_answers", counted)
    return counts


def table():
    return np.zeros(SHAPE, "f4")


def rows(*ids, value=1.0):
    return np.array(ids), np.full((len(ids), SHAPE[1]), value, "f4")


def assert_current(optimizer, session):
    for name, array in session.pull().items():
        assert np.array_equal(optimizer.weights[name], array), name


@LANES
def test_two_workers_bring_each_other_up_to_date(server, name, lane, received):
    with (
        optd.connect(server.address, job=name, worker="a", lane=lane) as one,
        optd.connect(server.address, job=name, worker="b", lane=lane) as two,
    ):
        first, second = (optd.SGD({"t": table(), "b": np.zeros(5)}, lr=1.0, session=each) for each in (one, two))
        first.step({"t": rows(1, 7)})
        first.step({"t": rows(2)})
        second.step({"t": rows(3), "b": np.ones(5)})
        assert received == [5, 4 * (2 + 1) + 4 * 4]
        assert_current(second, one)
        first.step({"t": rows(1), "b": np.ones(5)})
        assert_current(first, one)
        first.step({"t": (np.empty(0, int), np.empty((0, 4), "f4"))})
        assert_current(first, one)
        first.step({"b": np.ones(5), "t": table()})  # whole: all has changed
        assert_current(first, one)


@LANES
def test_weights_that_were_replaced_come_whole(server, name, lane, received):
    with (
        optd.connect(server.address, job=name, worker="a", lane=lane) as one,
        optd.connect(server.address, job=name, worker="b", lane=lane) as two,
    ):
        tensor = torch.nn.Parameter(torch.zeros(SHAPE))
        other = optd.torch.SGD([("t", tensor)], lr=1.0, session=one)
        optimizer = optd.SGD({"t": table()}, lr=1.0, session=two)
        optimizer.step({"t": rows(1)})
        with torch.no_grad():
            tensor.fill_(5)
        other.push_weights()
        received[:] = [0, 0]
        optimizer.step({"t": rows(2)})
        assert received == [SHAPE[0] * SHAPE[1], 0]
        assert_current(optimizer, two)
        optimizer.step({"t": rows(3)})
        assert received[1] == SHAPE[1]
        assert_current(optimizer, two)


def test_who_has_been_away_for_long_gets_everything(server, name, received):
    with (
        optd.connect(server.address, job=name, worker="a", lane="grpc") as one,
        optd.connect(server.address, job=name, worker="b", lane="grpc") as two,
    ):
        first, second = (optd.SGD({"t": table()}, lr=1.0, session=each) for each in (one, two))
        for number in range(70):
            first.push({"t": rows(number)})
        second.step({"t": rows(0)})
        assert received == [SHAPE[0] * SHAPE[1], 0]
        assert_current(second, two)


def test_a_group_that_another_worker_has_added_passes_by(server, name):
    with (
        optd.connect(server.address, job=name, worker="a", lane="grpc") as one,
        optd.connect(server.address, job=name, worker="b", lane="grpc") as two,
    ):
        first, second = (optd.SGD({"t": table()}, lr=1.0, session=each) for each in (one, two))
        first.add_param_group({"params": {"u": table()}})
        first.step({"u": rows(1, 2), "t": rows(3)})
        second.step({"t": rows(4)})
        assert np.array_equal(second.weights["t"], one.pull()["t"])
        first.step({"u": rows(2)})
        assert_current(first, one)


@LANES
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_tensors_hold_the_weights_however_they_lie(server, name, lane, transposed, zero_copy):
    with optd.connect(server.address, job=name, lane=lane) as session:
        numbers = torch.zeros(SHAPE[::-1]).t() if transposed else torch.zeros(SHAPE)
        tensor = torch.nn.Parameter(numbers)
        optimizer = optd.torch.SGD([("t", tensor)], lr=1.0, session=session, zero_copy=zero_copy)
        for number in range(4):
            values = torch.ones(2, SHAPE[1])
            tensor.grad = torch.sparse_coo_tensor([[number, 9]], values, SHAPE, check_invariants=True)
            optimizer.step()
            assert torch.equal(tensor.detach(), torch.from_numpy(session.pull()["t"]))
            tensor.grad = torch.full(SHAPE, float(number == 2))
            optimizer.step()
            assert torch.equal(tensor.detach(), torch.from_numpy(session.pull()["t"]))


def test_what_was_changed_in_a_tensor_is_replaced_where_that_is_wanted(server, name):
    with optd.connect(server.address, job=name, lane="grpc") as session:
        tensor = torch.nn.Parameter(torch.zeros(SHAPE))
        optimizer = optd.torch.SGD([("t", tensor)], lr=1.0, session=session, local_changes="warn")
        with torch.no_grad():
            tensor[5] = 7
        tensor.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, SHAPE[1]), SHAPE, check_invariants=True)
        with pytest.warns(UserWarning, match="'t' has been changed here"):
            optimizer.step()
        assert torch.equal(tensor.detach(), torch.from_numpy(session.pull()["t"]))
        assert tensor[5].eq(0).all()


def test_changed_weights_in_fewer_bytes(server, name):
    with optd.connect(server.address, job=name, lane="grpc", encoding="bfloat16") as session:
        optimizer = optd.SGD({"t": table()}, lr=1.0, session=session)
        optimizer.step({"t": rows(3, value=1 + 2**-12)})
        assert (optimizer.weights["t"][3] == -1).all()
        assert not optimizer.weights["t"][4:].any()
