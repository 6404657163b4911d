"""Which lane a session takes, what it says about it, and that numbers are the same on each."""

import errno
import gc
import os

import numpy as np
import pytest

import optd
from optd import errors
from optd.local import LocalServer, local
from optd.transport.lane_choice import SHARED_ELEMENTS
from optd.transport.shm import SharedMemoryLane
from optd_wire.values import GroupUpdate


@pytest.fixture(scope="module")
def unshared():
    with local("--no-shared-memory") as running:
        yield running


def train(session, elements, steps=3):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=elements).astype("f4"), "b": rng.normal(size=3)}
    optimizer = optd.Adam(weights, lr=0.1, session=session)
    for _ in range(steps):
        optimizer.step({name: rng.normal(size=w.shape).astype(w.dtype) for name, w in weights.items()})
    return weights


@pytest.mark.parametrize(
    ("elements", "how", "lane"),
    [
        (SHARED_ELEMENTS, {}, "shm"),
        (SHARED_ELEMENTS - 4, {}, "grpc"),
        (SHARED_ELEMENTS, {"lane": "grpc"}, "grpc"),
        (10, {"lane": "shm"}, "shm"),
        (SHARED_ELEMENTS, {"encoding": "bfloat16"}, "grpc"),
        (SHARED_ELEMENTS, {"encoding": "topk:0.5"}, "grpc"),
        (SHARED_ELEMENTS, {"encoding": "float64"}, "shm"),
    ],
)
def test_the_lane_of_a_session(elements, how, lane, server, name):
    with optd.connect(server.address, job=name, worker="w0", **how) as session:
        assert session.lane == "grpc", "nothing is decided before there is a job"
        train(session, elements)
        assert session.lane == lane
        assert f"lane={lane}" in repr(session)
        assert [worker.lane for worker in session.workers()] == [lane]


@pytest.mark.parametrize("steps", [1, 4])
def test_numbers_are_the_same_on_each(steps, server, name):
    held = []
    for lane in ("grpc", "shm"):
        with optd.connect(server.address, job=f"{name}-{lane}", lane=lane) as session:
            held.append(train(session, 1000, steps))
            pulled = session.pull()
            assert all((pulled[key] == held[-1][key]).all() for key in pulled)
    assert all((held[0][key] == held[1][key]).all() for key in held[0])


def test_workers_on_different_lanes_train_one_job(server, name):
    weights = {lane: np.zeros(5) for lane in ("grpc", "shm")}
    with (
        optd.connect(server.address, job=name, worker="a", lane="grpc") as one,
        optd.connect(server.address, job=name, worker="b", lane="shm") as two,
    ):
        first = optd.SGD({"w": weights["grpc"]}, lr=1.0, session=one)
        second = optd.SGD({"w": weights["shm"]}, lr=1.0, session=two)
        for _ in range(5):
            first.step({"w": np.ones(5)})
            second.step({"w": np.ones(5)})
        first.pull()
        assert weights["grpc"].tolist() == weights["shm"].tolist() == [-10] * 5
        assert [worker.lane for worker in one.workers()] == ["grpc", "shm"]


@pytest.mark.slow
def test_a_server_without_shared_memory_is_trained_in_messages(unshared, name):
    with optd.connect(unshared.address, job=name, worker="w0") as session:
        weights = train(session, SHARED_ELEMENTS)
        assert session.lane == "grpc"
        np.testing.assert_array_equal(session.pull()["w"], weights["w"])
        assert session.workers()[0].lane == "grpc (it was started with --no-shared-memory)"


@pytest.mark.slow
def test_shared_memory_that_is_asked_for_and_not_there_is_an_error(unshared, name):
    with optd.connect(unshared.address, job=name, worker="w0", lane="shm") as session:
        with pytest.raises(errors.SharedMemoryUnavailable) as caught:
            train(session, 10)
        message = str(caught.value)
        assert message.startswith("no shared memory with the server: ")
        assert "--no-shared-memory" in message
        assert "lane='auto' does without" in message


def test_after_shared_memory_that_was_not_there_an_optimizer_may_register_again(server, name, monkeypatch):
    def elsewhere(*_):
        raise errors.SharedMemoryUnavailable(why="it is a test")

    with optd.connect(server.address, job=name, worker="w0", lane="shm") as session:
        with monkeypatch.context() as patch:
            patch.setattr("optd.transport.shm._connect", elsewhere)
            for _ in range(2):
                with pytest.raises(errors.SharedMemoryUnavailable):
                    train(session, 10)
        weights = train(session, 10)
        assert session.lane == "shm"
        np.testing.assert_array_equal(session.pull()["w"], weights["w"])
        with pytest.raises(errors.AlreadyRegistered):
            train(session, 10)


def test_memory_that_cannot_be_reached_is_an_error_that_says_where(server, name, monkeypatch):
    def elsewhere(*_):
        raise errors.SharedMemoryUnavailable(address="here", why="cannot connect to /x: no such file or directory")

    monkeypatch.setattr("optd.transport.shm._connect", elsewhere)
    with (
        optd.connect(server.address, job=name, worker="w0", lane="shm") as session,
        pytest.raises(errors.SharedMemoryUnavailable, match="cannot connect to /x: no such file"),
    ):
        train(session, 10)
    with optd.connect(server.address, job=name, worker="w1") as session:
        train(session, 10)
        assert session.lane == "grpc"


def test_the_server_knows_why_a_worker_does_without(server, name, monkeypatch):
    def elsewhere(*_):
        raise errors.SharedMemoryUnavailable(address="here", why="cannot connect to /x: no such file or directory")

    monkeypatch.setattr("optd.transport.shm._connect", elsewhere)
    with optd.connect(server.address, job=name, worker="w0") as session:
        train(session, SHARED_ELEMENTS)
        assert session.lane == "grpc"
        assert session.workers()[0].lane == "grpc (cannot connect to /x: no such file or directory)"


def test_what_no_lane_carries_is_refused_before_anything_is_sent():
    with pytest.raises(errors.InvalidRequest, match="lane must be 'auto', 'grpc' or 'shm', got 'pigeon'"):
        optd.connect("127.0.0.1:1", lane="pigeon")
    with pytest.raises(errors.InvalidRequest, match="lane 'shm' carries numbers unchanged; encoding 'int8' is for"):
        optd.connect("127.0.0.1:1", lane="shm", encoding="int8")
    with pytest.raises(errors.UnknownEncoding):
        optd.connect("127.0.0.1:1", encoding="morse")


def test_an_encoding_for_one_step(server, name):
    with (
        optd.connect(server.address, job=name, worker="w0", lane="shm") as shared,
        optd.connect(server.address, job=name, worker="w1", lane="grpc") as session,
    ):
        weights = {"w": np.zeros(4, "f4")}
        optimizer = optd.SGD({"w": np.zeros(4, "f4")}, lr=1.0, session=shared)
        with pytest.raises(errors.InvalidRequest, match="lane 'shm' carries numbers unchanged"):
            optimizer.step({"w": np.ones(4, "f4")}, encoding="int8")
        assert shared.info().version.version == 0
        second = optd.SGD(weights, lr=1.0, session=session)
        second.step({"w": np.array([1, 2, 3, 4], "f4")}, encoding="topk:0.25")
        assert weights["w"].tolist() == [0, 0, 0, -4]
        second.step({"w": np.zeros(4, "f4")}, encoding="topk:0.25")
        assert weights["w"].tolist() == [0, 0, -3, -4]


@pytest.mark.parametrize("encoding", ["int8", "bfloat16", "float16"])
def test_one_step_or_push_in_fewer_bytes_among_others(encoding, server, name):
    """What it rounds is rounded once; the steps around it are exact."""
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=3000).astype("f4") for _ in range(4)]
    weights = {"w": np.zeros(3000, "f4")}
    with optd.connect(server.address, job=name, worker="w0", lane="grpc") as session:
        optimizer = optd.SGD(weights, lr=1.0, session=session)
        optimizer.step({"w": gradients[0]})
        np.testing.assert_array_equal(weights["w"], -gradients[0])
        for call, gradient in ((optimizer.step, gradients[1]), (optimizer.push, gradients[2])):
            before = session.pull()["w"]
            call({"w": gradient}, encoding=encoding)
            arrived = before - session.pull()["w"]
            assert not np.array_equal(arrived, gradient), "it does round"
            np.testing.assert_allclose(arrived, gradient, rtol=0, atol=0.03)
        before = session.pull()["w"]
        optimizer.step({"w": gradients[3]})
        np.testing.assert_array_equal(weights["w"], before - gradients[3])
        with pytest.raises(errors.UnknownEncoding, match="no encoding 'morse'"):
            optimizer.step({"w": gradients[3]}, encoding="morse")
        assert session.info().version.version == 4


@pytest.mark.parametrize("call", ["step", "push"])
@pytest.mark.parametrize("encoding", ["int8", "bfloat16", "topk:0.5"])
def test_what_is_encoded_for_messages_never_lands_in_shared_memory(call, encoding, server, name, monkeypatch):
    """Finding out about a push in doubt may find shared memory, too, where there was none before."""

    def elsewhere(*_):
        raise errors.SharedMemoryUnavailable(why="it is a test")

    def late(*_):
        raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    gradient = {"w": np.ones(SHARED_ELEMENTS, "f4")}
    with optd.connect(server.address, job=name, worker="w0") as session:
        with monkeypatch.context() as patch:
            patch.setattr("optd.transport.shm._connect", elsewhere)
            optimizer = optd.SGD({"w": np.zeros(SHARED_ELEMENTS, "f4")}, lr=1.0, session=session)
            patch.setattr(session._transport, "step", late)
            with pytest.raises(errors.DeadlineExceeded):
                getattr(optimizer, call)(gradient, encoding=encoding)
        assert session.lane == "grpc"
        with pytest.raises(errors.InvalidRequest, match="lane 'shm' carries numbers unchanged"):
            getattr(optimizer, call)(gradient, encoding=encoding)
        assert session.lane == "shm"
        assert session.info().version.version == 0
        optimizer.step(gradient)
        assert np.unique(session.pull()["w"]).tolist() == [-1]


# What is left behind


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at


@pytest.mark.parametrize("wrong", ["too many", "too few", "no confirmation"])
def test_memory_that_is_not_taken_leaves_no_descriptors(wrong, server, name, monkeypatch):
    real = SharedMemoryLane._descriptors

    def others(lane, asked, most):
        got = real(lane, asked, most)
        if wrong == "too many":
            return [*got, os.dup(got[0])]
        os.close(got.pop())
        return got

    def unconfirmed(*_, **__):
        raise errors.ConnectionLost(address="here", rpc="ConfirmSharedMemory", problem="cut")

    with optd.connect(server.address, job=name, worker="w0", lane="grpc") as session:
        train(session, 10)
        if wrong == "no confirmation":
            monkeypatch.setattr(session._transport, "confirm_shared_memory", unconfirmed)
        else:
            monkeypatch.setattr(SharedMemoryLane, "_descriptors", others)
        session._wanted_lane = "auto"
        monkeypatch.setattr("optd.transport.lane_choice.SHARED_ELEMENTS", 1)
        before = descriptors()
        gc.disable()  # it would hide what is not closed
        try:
            for _ in range(5):
                session._choose_lane(session._membership)
                assert session.lane == "grpc"
            assert descriptors() == before
        finally:
            gc.enable()


# What a pull brings


@pytest.fixture(params=["grpc", "shm"])
def two(request, server, name):
    """A worker with an optimizer of two groups, and another worker of the job."""

    def groups():
        return [
            {"name": "g", "params": {"a": np.zeros(3), "b": np.zeros(2)}},
            {"name": "h", "params": {"c": np.zeros(4)}},
        ]

    with (
        optd.connect(server.address, job=name, worker="w0", lane=request.param) as one,
        optd.connect(server.address, job=name, worker="w1", lane=request.param) as other,
    ):
        yield optd.SGD(groups(), lr=1.0, session=one), optd.SGD(groups(), lr=1.0, session=other)


def ones():
    return {"a": np.ones(3), "b": np.ones(2), "c": np.ones(4)}


def first_elements(optimizer):
    return [float(array[0]) for array in optimizer.weights.values()]


def test_only_if_newer(two, monkeypatch):
    mine, other = two
    assert mine.pull(only_if_newer=True) is None
    mine.step(ones())
    assert mine.pull(only_if_newer=True) is None
    other.step(ones())
    assert mine.pull(only_if_newer=True) is not None
    assert first_elements(mine) == [-2, -2, -2]
    assert mine.pull(only_if_newer=True) is None
    other.param_groups[0]["lr"] = 0.5
    other.push({})
    mine.pull()
    assert mine.param_groups[0]["lr"] == 0.5
    assert mine.pull() is not None


def test_options_that_have_changed_are_news(two):
    mine, other = two
    mine.pull()
    other.session.update_group(GroupUpdate("h", {"lr": 0.25}, 0))
    assert mine.pull(only_if_newer=True) is not None
    assert mine.param_groups[1]["lr"] == 0.25
    assert mine.pull(only_if_newer=True) is None


def test_some_groups_and_some_parameters(two):
    mine, other = two
    other.step(ones())
    mine.pull(groups=["h"])
    assert first_elements(mine) == [0, 0, -1]
    assert mine.version == 0, "gradients are still computed on the rest"
    mine.pull(parameters=["b"])
    assert first_elements(mine) == [0, -1, -1]
    other.step(ones())
    mine.pull(groups=["h"], parameters=["a"])
    assert first_elements(mine) == [-2, -1, -2]
    for wrong, error in (({"groups": ["x"]}, errors.UnknownGroup), ({"parameters": ["x"]}, errors.UnknownParameter)):
        with pytest.raises(error, match="'x'"):
            mine.pull(**wrong)
    assert first_elements(mine) == [-2, -1, -2]
    mine.pull()
    assert (first_elements(mine), mine.version) == ([-2, -2, -2], 2)
    assert list(mine.session.pull(groups=["h"], parameters=["a"])) == ["a", "c"]


def test_a_gradient_stays_in_shared_memory_until_its_push_is_fenced(server, name, monkeypatch):
    """A push that was late may still wait for its round there: what comes next must not be taken for it."""
    with optd.connect(server.address, job=name, worker="w0", lane="shm") as session:
        weights = {"w": np.zeros(4)}
        optimizer = optd.SGD(weights, lr=1.0, session=session)
        optimizer.step({"w": np.full(4, 1.0)})
        transport, memory = session._transport, session.shared_memory.gradients[0][0]
        real_join, seen = transport.join, []

        def late(*_):
            raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

        def join(*args, **more):
            seen.append(memory.tolist())
            return real_join(*args, **more)

        monkeypatch.setattr(transport, "step", late)
        with pytest.raises(errors.DeadlineExceeded):
            optimizer.step({"w": np.full(4, 2.0)})
        monkeypatch.undo()
        monkeypatch.setattr(transport, "join", join)
        optimizer.step({"w": np.full(4, 4.0)})
        assert seen == [[2.0] * 4]
        assert weights["w"].tolist() == [-5] * 4


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("call", ["step", "pull"])
def test_weights_that_are_not_handed_over_come_on_another_lane(call, zero_copy, server, name, monkeypatch):
    """A push that was applied before that counts once."""
    real, failures = SharedMemoryLane._descriptors, ["once"]

    def descriptors(lane, asked, most):
        if most == 1 and failures:
            failures.pop()
            raise errors.SharedMemoryUnavailable(address="here", why="it is a test")
        return real(lane, asked, most)

    monkeypatch.setattr(SharedMemoryLane, "_descriptors", descriptors)
    with optd.connect(server.address, job=name, worker="w0", lane="shm") as session:
        optimizer = optd.SGD({"w": np.zeros(4)}, lr=1.0, session=session, zero_copy=zero_copy)
        first = session.shared_memory
        steps = 0
        if call == "step":
            optimizer.step({"w": np.ones(4)})
            steps = 1
        else:
            optimizer.pull()
        assert session.shared_memory not in (first, None)
        assert optimizer.weights["w"].tolist() == [-steps] * 4
        optimizer.step({"w": np.ones(4)})
        assert optimizer.weights["w"].tolist() == [-steps - 1] * 4
        assert session.info().version.version == steps + 1


@pytest.mark.parametrize("call", ["step", "pull"])
def test_a_connection_for_memory_that_ends_is_made_anew(call, server, name):
    with optd.connect(server.address, job=name, worker="w0", lane="shm") as session:
        optimizer = optd.SGD({"w": np.zeros(4)}, lr=1.0, session=session, zero_copy=True)
        first = session.shared_memory
        first._socket.close()
        if call == "pull":
            optimizer.pull()
        optimizer.step({"w": np.ones(4)})
        assert session.shared_memory not in (first, None)
        assert optimizer.weights["w"].tolist() == [-1] * 4


def test_a_socket_that_breaks_leaves_a_lane_of_messages(server, name, monkeypatch):
    def broken(*_):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("optd.transport.shm.socket.recv_fds", broken)
    with optd.connect(server.address, job=name, worker="w0") as session:
        train(session, SHARED_ELEMENTS)
        assert session.lane == "grpc"
        assert session.workers()[0].lane == "grpc (the server did not hand it over: connection reset by peer)"


def test_memory_that_cannot_be_mapped_leaves_the_worker_with_messages(
    server: LocalServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, descriptor: int, size: int, *, shared: bool) -> None:
        os.close(descriptor)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("optd.transport.shared_region.Region.__init__", fails)
    weights = np.ones(SHARED_ELEMENTS, np.float32)
    with optd.connect(server.address, job=name, worker="w0", timeout=20) as session:
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        optimizer.step([np.ones_like(weights)])
        assert (session.lane, weights[0]) == ("grpc", 0)
        (worker,) = session.workers()
        assert worker.lane == f"grpc (this process cannot map {weights.nbytes} bytes: cannot allocate memory)"


def test_weights_that_cannot_be_mapped_after_a_step_count_once(
    server: LocalServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.ones(SHARED_ELEMENTS, np.float32)
    with optd.connect(server.address, job=name, worker="w0", timeout=20) as session:
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        assert session.lane == "shm"

        def fails(self: object, descriptor: int, size: int, *, shared: bool) -> None:
            os.close(descriptor)
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr("optd.transport.shared_region.Region.__init__", fails)
        result = optimizer.step([np.ones_like(weights)])
        assert (session.lane, result.repeat, weights[0]) == ("grpc", True, 0)
        assert session.info().version.version == 1


def test_one_name_may_be_pulled_by_itself(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, worker="w0", timeout=20) as session:
        optimizer = optd.SGD([{"params": {"weight": np.ones(2)}, "name": "body"}], lr=1.0, session=session)
        assert list(session.pull(groups="body")) == list(session.pull(parameters="weight")) == ["weight"]
        assert optimizer.pull(groups="body")
        with pytest.raises(optd.errors.InvalidRequest, match="by name, got 1"):
            optimizer.pull(groups=[1])  # type: ignore[list-item]
        with pytest.raises(optd.errors.InvalidRequest, match=r"by name, got None; \(\) is all of them"):
            optimizer.pull(parameters=None)  # type: ignore[arg-type]
