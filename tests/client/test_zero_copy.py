"""`zero_copy=True` with numpy: weights and gradients stay in memory shared with the server."""

import gc
import time

import numpy as np
import pytest
import torch

import optd
from optd import errors
from optd.local import local

SIZE = 3000  # elements, over more than one page


def params():
    return [{"name": "g", "params": {"a": np.zeros(SIZE), "b": np.zeros(2)}}, {"params": {"c": np.zeros((2, 4), "f4")}}]


@pytest.fixture
def serve(server, name):
    """Makes optimizers of one job, each with a session of its own."""
    sessions = []

    def make(worker="w0", lane="shm", zero_copy=True, address=server.address, **how):
        sessions.append(optd.connect(address, job=name, worker=worker, lane=lane, **how))
        return optd.SGD(params(), lr=1.0, session=sessions[-1], zero_copy=zero_copy)

    yield make
    for session in sessions:
        session.close()


def fill(optimizer, value):
    for gradient in optimizer.gradients.values():
        gradient[...] = value


def values(arrays):
    return [np.unique(array).tolist() for array in arrays.values()]


def shared(optimizer):
    """For each gradient whether it lies where the server reads it."""
    places = [segment for row in optimizer.session.shared_memory.gradients for segment in row]
    return [any(np.shares_memory(g, place) for place in places) for g in optimizer.gradients.values()]


def test_weights_stay_where_they_are_and_params_too(serve):
    optimizer = serve()
    for number in range(1, 6):
        fill(optimizer, 1)
        optimizer.step()
        assert values(optimizer.weights) == [[-number]] * 3
        assert values(optimizer.session.pull()) == [[-number]] * 3
    assert [set(map(float, array.flat)) for group in optimizer.param_groups for array in group["params"]] == [{0.0}] * 3
    for array in optimizer.weights.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    assert [array.shape for array in optimizer.weights.values()] == [(SIZE,), (2,), (2, 4)]


def test_weights_are_undisturbed_until_the_next_call(serve):
    mine, other = serve(), serve("w1")
    for number in range(4):
        fill(mine, 1)
        mine.step()
        held = mine.weights
        before = values(held)
        for _ in range(6):
            fill(other, 1)
            other.step()
            assert values(held) == before == [[-7 * number - 1]] * 3
    mine.pull()
    assert values(mine.weights) == [[-28]] * 3


def test_many_readers_in_place_keep_nobody_from_stepping(serve):
    """There are few sets of weights: who comes too late for one gets copies, and notices nothing."""
    readers = [serve(f"r{number}") for number in range(6)]
    writer = serve("w")
    for number, reader in enumerate(readers, 1):
        fill(writer, 1)
        writer.step()
        reader.pull()
        assert values(reader.weights) == [[-number]] * 3
    assert [values(reader.weights) for reader in readers] == [[[-n]] * 3 for n in range(1, 7)]


def test_gradients_lie_where_the_server_reads_them(serve):
    optimizer = serve()
    assert shared(optimizer) == [True] * 3
    assert values(optimizer.gradients) == [[0]] * 3
    optimizer.gradients["a"] += 2
    optimizer.gradients["a"] += 1
    optimizer.step()
    assert values(optimizer.weights) == [[-3], [0], [0]]
    optimizer.zero_grad(set_to_none=False)
    assert values(optimizer.gradients) == [[0]] * 3
    optimizer.step()
    assert values(optimizer.weights) == [[-3], [0], [0]]
    optimizer.zero_grad()
    optimizer.step()
    assert {group.max_steps for group in optimizer.session.groups()} == {2}, "no gradients, no step of any parameter"
    fill(optimizer, 1)
    assert shared(optimizer) == [True] * 3
    optimizer.step()
    assert values(optimizer.weights) == [[-4], [-1], [-1]]


def test_entries_may_be_replaced_left_out_and_swapped(serve):
    optimizer = serve()
    fill(optimizer, 1)
    optimizer.gradients["b"] = np.full(2, 5.0)
    optimizer.gradients["c"] = np.full((4, 2), 3, "f4").T
    optimizer.step()
    assert values(optimizer.weights) == [[-1], [-5], [-3]]
    optimizer.zero_grad()
    fill(optimizer, 1)
    del optimizer.gradients["a"]
    optimizer.gradients["b"] = None
    optimizer.step()
    assert values(optimizer.weights) == [[-1], [-5], [-4]]


def test_places_of_each_other(server, name):
    with optd.connect(server.address, job=name, lane="shm") as session:
        optimizer = optd.SGD({"a": np.zeros(4), "b": np.zeros(4)}, lr=1.0, session=session, zero_copy=True)
        one, two = optimizer.gradients.values()
        one[:], two[:] = 1, 2
        optimizer.step({"a": two, "b": one})
        assert values(optimizer.weights) == [[-2], [-1]]


def test_other_gradients_than_those(serve):
    optimizer = serve()
    optimizer.step({"a": np.ones(SIZE), "c": np.ones((2, 4), "f4")})
    assert values(optimizer.weights) == [[-1], [0], [-1]]
    optimizer.push({"b": np.ones(2)})
    assert values(optimizer.weights) == [[-1], [0], [-1]]
    optimizer.pull()
    assert values(optimizer.weights) == [[-1], [-1], [-1]]


def test_a_refusal_leaves_weights_and_gradients(serve):
    optimizer = serve()
    fill(optimizer, 1)
    optimizer.step()
    optimizer.gradients["b"][1] = np.inf
    with pytest.raises(errors.NonfiniteGradient, match="gradient of parameter 'b' has inf at flat index 1"):
        optimizer.step()
    assert values(optimizer.weights) == [[-1]] * 3
    optimizer.gradients["b"][1] = 1
    optimizer.step()
    assert values(optimizer.weights) == [[-2]] * 3


def test_a_part_of_the_weights_is_pulled_into_the_arrays(serve):
    mine, other = serve(), serve("w1")
    fill(mine, 1)
    mine.step()
    fill(other, 1)
    other.step()
    mine.pull(groups=["g"])
    assert values(mine.weights) == [[-2], [-2], [-1]]
    mine.pull()
    assert values(mine.weights) == [[-2]] * 3


def test_a_group_that_is_added(serve):
    mine, other = serve(), serve("w1")
    fill(mine, 1)
    mine.step()
    for optimizer in (mine, other):
        optimizer.add_param_group({"params": {"d": np.full(5, 10.0)}, "lr": 2.0})
    for optimizer, last in ((mine, 2), (other, 3)):
        fill(optimizer, 1)
        assert shared(optimizer) == [True] * 4
        optimizer.step()
        assert values(optimizer.weights) == [[-last]] * 3 + [[10 - 2 * (last - 1)]]


def test_groups_that_only_others_have(serve):
    mine, other = serve(), serve("w1")
    other.add_param_group({"params": {"d": np.full(5, 10.0)}})
    for number in range(1, 4):
        fill(mine, 1)
        mine.step()
        fill(other, 0)
        other.step()
        assert values(mine.weights) == [[-number]] * 3


@pytest.mark.parametrize("applied", [True, False])
def test_after_an_answer_that_never_came(applied, serve, monkeypatch):
    """The server may still read the gradient: until that is settled nothing is written there."""
    optimizer = serve()
    fill(optimizer, 1)
    optimizer.step()
    transport = optimizer.session._transport
    real, places = transport.step, list(optimizer.gradients.values())

    def late(*args):
        if applied:
            real(*args)
        raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    monkeypatch.setattr(transport, "step", late)
    weights = optimizer.weights
    with pytest.raises(errors.DeadlineExceeded):
        optimizer.step()
    monkeypatch.undo()
    assert optimizer.session.in_doubt
    fill(optimizer, 4)
    assert [np.unique(place).tolist() for place in places] == [[1]] * 3
    assert values(weights) == [[-1]] * 3
    optimizer.step()
    total = -6 if applied else -5
    assert values(optimizer.weights) == [[total]] * 3
    optimizer.zero_grad()
    fill(optimizer, 1)
    assert shared(optimizer) == [True] * 3
    optimizer.step()
    assert values(optimizer.weights) == [[total - 1]] * 3
    assert optimizer.session.lane == "shm"


@pytest.mark.slow
def test_a_lease_that_has_run_out(name, serve):
    with local("--lease-seconds", "0.3") as server:
        lost, other = serve(address=server.address), serve("w1", address=server.address)
        fill(lost, 1)
        lost.step()
        held = {key: array.copy() for key, array in lost.weights.items()}
        lost.session._heartbeat.stop()
        while any(worker.active for worker in other.session.workers() if worker.name == "w0"):
            time.sleep(0.02)
        lost.session.close()
        weights = lost.weights
        back = serve(address=server.address)
        assert values(back.weights) == values(held)
        for _ in range(5):
            fill(back, 1)
            back.step()
        assert values(back.weights) == [[-6]] * 3
        assert {key: array.tolist() for key, array in weights.items()} == {k: a.tolist() for k, a in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "forget"])
def test_weights_stay_when_the_session_has_ended(end, server, name, serve):
    other = serve("w1")
    session = optd.connect(server.address, job=name, worker="w0", lane="shm")
    optimizer = optd.SGD(params(), lr=1.0, session=session, zero_copy=True)
    fill(optimizer, 1)
    optimizer.step()
    held = optimizer.weights
    if end == "close":
        session.close()
    del session, optimizer
    gc.collect()
    while any(worker.active for worker in other.session.workers() if worker.name == "w0"):
        time.sleep(0.01)
    for _ in range(6):
        fill(other, 1)
        other.step()
    assert values(held) == [[-1]] * 3


def test_without_shared_memory_it_is_as_without(serve):
    optimizer = serve(lane="grpc")
    fill(optimizer, 1)
    optimizer.step()
    own = [array for group in optimizer.param_groups for array in group["params"]]
    assert all(array is mine for array, mine in zip(optimizer.weights.values(), own, strict=True))
    assert values(optimizer.weights) == [[-1]] * 3


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_an_entry_that_is_none_stays_none(lane, serve):
    optimizer = serve(lane=lane)
    fill(optimizer, 1)
    optimizer.gradients["b"] = None
    optimizer.zero_grad(set_to_none=False)
    assert optimizer.gradients["b"] is None
    optimizer.gradients["a"][...] = 1
    optimizer.step()
    assert values(optimizer.weights) == [[-1], [0], [0]]


def test_a_step_without_all_gradients_whose_answer_never_came_raises_that(serve, monkeypatch):
    optimizer = serve()
    fill(optimizer, 1)
    optimizer.gradients["b"] = None

    def late(*_):
        raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    monkeypatch.setattr(optimizer.session._transport, "step", late)
    with pytest.raises(errors.DeadlineExceeded):
        optimizer.step()
    monkeypatch.undo()
    assert optimizer.gradients["b"] is None
    optimizer.step()
    assert values(optimizer.weights) == [[-1], [0], [-1]]


# Equality with torch

TORCH = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.05, "amsgrad": True},
    "AdamW": {"lr": 0.05, "weight_decay": 0.1},
}


@pytest.mark.parametrize("zero_copy", [True, False])
@pytest.mark.parametrize("algorithm", TORCH)
def test_it_trains_as_torch_does(algorithm, zero_copy, server, name):
    """Some gradients are missing: such a parameter makes no step, and counts none."""
    rng = np.random.default_rng(0)
    start = {
        "a": rng.normal(size=(40, 30)).astype("f4"),
        "b": rng.normal(size=7),
        "c": rng.normal(size=()).astype("f4"),
    }
    theirs = {key: torch.nn.Parameter(torch.tensor(array)) for key, array in start.items()}
    reference = getattr(torch.optim, algorithm)(theirs.values(), foreach=False, **TORCH[algorithm])
    with optd.connect(server.address, job=name, lane="shm") as session:
        ours = getattr(optd, algorithm)(
            {key: array.copy() for key, array in start.items()},
            session=session,
            zero_copy=zero_copy,
            **TORCH[algorithm],
        )
        for number in range(20):
            missing = {3: {"b"}, 8: {"a", "c"}, 9: {"a"}}.get(number, set())
            ours.zero_grad()
            reference.zero_grad()
            for key, parameter in theirs.items():
                if key in missing:
                    ours.gradients[key] = None
                    continue
                gradient = rng.normal(size=parameter.shape).astype(start[key].dtype)
                ours.gradients[key][...] = gradient
                parameter.grad = torch.tensor(gradient)
            ours.step()
            reference.step()
            for key, array in ours.weights.items():
                tolerance = 2e-6 if array.dtype == np.float32 else 1e-13
                np.testing.assert_allclose(array, theirs[key].detach().numpy(), rtol=tolerance, atol=tolerance)
        assert session.lane == "shm"
