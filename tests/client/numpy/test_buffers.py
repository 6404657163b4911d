"""Arrays that travel with a job as they are, beside its parameters."""

from collections.abc import Iterator

import numpy as np
import pytest

import optd
from optd.errors import NotAnArray
from optd.local import LocalServer


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with optd.local() as running:
        yield running


def arrays():
    return {"mean": np.zeros(3, np.float32), "count": np.array(2**40), "seen": np.array([True, False])}


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_arrays_are_pushed_with_steps_and_pulled_in_place(server, lane, zero_copy):
    job, buffers, others = f"buffers-{lane}-{zero_copy}", arrays(), arrays()
    with (
        optd.connect(server.address, job=job, worker="w0", lane=lane) as first,
        optd.connect(server.address, job=job, worker="w1", lane=lane) as second,
    ):
        optimizer = optd.SGD({"w": np.ones(4)}, lr=0.5, buffers=buffers, session=first, zero_copy=zero_copy)
        buffers["mean"][:] = [0.1, 0.2, 0.3]
        buffers["count"] += 1
        expected = {name: array.copy() for name, array in buffers.items()}
        optimizer.step({"w": np.ones(4)})
        assert optimizer.weights["w"].tolist() == [0.5] * 4
        assert len(optimizer.param_groups) == 1
        evaluator = optd.SGD({"w": np.ones(4)}, lr=0.5, buffers=others, session=second, zero_copy=zero_copy)
        for given in (buffers, others):
            for name, array in given.items():
                assert array.dtype == expected[name].dtype
                assert np.array_equal(array, expected[name])
        others["seen"][:] = [False, True]
        evaluator.push({"w": np.ones(4)})
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.pull()
        assert buffers["seen"].tolist() == [False, True]
        buffers["seen"][:] = True
        optimizer.push_weights(None if optimizer._registration.in_arrays else {"w": np.zeros(4)})
        evaluator.pull()
        assert others["seen"].tolist() == [True, True]
        assert repr(optimizer).count("group ") == 1


def test_the_gradients_to_fill_are_those_of_the_parameters(server):
    buffers = arrays()
    with optd.SGD({"w": np.ones(4)}, lr=0.5, buffers=buffers, server=server.address, zero_copy=True) as optimizer:
        assert list(optimizer.gradients) == ["w"]
        optimizer.gradients["w"][:] = 1
        buffers["mean"][:] = 4
        optimizer.step()
        optimizer.step()
        assert optimizer.weights["w"].tolist() == [0.0] * 4
        assert buffers["mean"].tolist() == [4.0] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([np.ones(2)], "buffers must be a dict of numpy arrays by name, got list"),
        ({"a": [1.0]}, "buffer 'a' must be a numpy array that can be written to, got list"),
        ({"a": np.ones(2, np.complex64)}, "buffer 'a' must be an array of float32, float64"),
    ],
)
def test_what_cannot_be_a_buffer_is_refused(server, given, message):
    with pytest.raises(NotAnArray) as raised:
        optd.SGD({"w": np.ones(4)}, lr=0.5, buffers=given, server=server.address)
    assert message in str(raised.value)
