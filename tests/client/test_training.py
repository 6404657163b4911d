"""Training in every encoding: how far a step may be off, that nothing is lost or doubled, and where it gets to."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.proxy import Proxy

import optd
import optd.torch
from optd import errors

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import network

# With a hundredth of each gradient it takes longer to get there.
STEPS = {"bfloat16": 300, "float16": 300, "int8": 300, "topk:0.1": 300, "topk": 600}


def accuracy(session, steps, **how):
    """Of what examples/digits.py trains, alone."""
    examples, held_out = network.load()
    batches = network.batches(examples, 32, seed=1)
    optimizer = optd.SGD(network.initial_weights(), lr=0.05, momentum=0.9, weight_decay=1e-4, session=session, **how)
    for _ in range(steps):
        optimizer.step(network.backward(optimizer.weights, next(batches))[1])
    return network.accuracy(session.pull(), held_out)


@pytest.fixture(scope="module")
def exact(server):
    """The accuracy after so many steps with numbers as they are."""

    def train(steps):
        with optd.connect(server.address, job=f"exact-{steps}", lane="grpc") as session:
            return accuracy(session, steps)

    return {steps: train(steps) for steps in set(STEPS.values())}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", STEPS)
def test_a_network_learns_as_well_in_each_encoding(encoding, exact, server, name):
    steps = STEPS[encoding]
    assert exact[steps] > 0.95
    with optd.connect(server.address, job=name, encoding=encoding) as session:
        assert accuracy(session, steps) >= exact[steps] - 0.01


@pytest.mark.slow
def test_a_network_learns_the_very_same_in_shared_memory(exact, server, name):
    with optd.connect(server.address, job=name, lane="shm") as session:
        assert accuracy(session, 300, zero_copy=True) == exact[300]


# The bounds that the encodings promise, for the gradient and for the weights that come back


def bound(encoding, numbers):
    """Of each number in turn; int8 goes by blocks, of which the largest magnitude of all is a bound."""
    if encoding == "int8":
        return np.full_like(numbers, np.abs(numbers).max() / 253)
    return np.abs(numbers) * {"bfloat16": 2**-8, "float16": 2**-11}[encoding] + 2**-25


@pytest.mark.parametrize("encoding", ["bfloat16", "float16", "int8"])
def test_the_error_of_a_step(encoding, server, name):
    rng = np.random.default_rng(0)
    weights = np.zeros(5000, "f4")
    with optd.connect(server.address, job=name, encoding=encoding) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        gradient = rng.normal(size=5000).astype("f4")
        optimizer.step({"w": gradient})
        held = session.pull()["w"]
        assert (np.abs(held + gradient) <= bound(encoding, gradient)).all()
        assert (np.abs(weights - held) <= bound(encoding, held)).all()
        assert not np.array_equal(held, -gradient), "it does round"


def test_errors_do_not_add_up(server, name):
    """What int8 rounds off is made good by later steps: after many the sum is as near as after one."""
    gradient = np.random.default_rng(0).normal(size=1000).astype("f4")
    with optd.connect(server.address, job=name, encoding="int8") as session:
        optimizer = optd.SGD({"w": np.zeros(1000, "f4")}, lr=1.0, session=session)
        for _ in range(50):
            optimizer.step({"w": gradient})
        held = session.pull()["w"]
    assert (np.abs(held + 50 * gradient) <= 2.5 * bound("int8", gradient)).all()


# Error feedback, whatever becomes of a push


@pytest.fixture
def whole_numbers(server, name):
    """Gradients whose sums float32 holds exactly, so that the account must come out exactly, too."""
    rng = np.random.default_rng(0)

    def gradient():
        return {key: rng.integers(-9, 10, size).astype("f4") for key, size in (("a", 40), ("b", 7))}

    weights = {"a": np.zeros(40, "f4"), "b": np.zeros(7, "f4")}
    with optd.connect(server.address, job=name, encoding="topk:0.1") as session:
        yield session, optd.SGD(weights, lr=1.0, session=session), gradient


def account(session, optimizer):
    """What has arrived and what is kept, by parameter: all that has been given."""
    (feedback,) = optimizer._registration._outgoing._feedback.values()
    view = optimizer._registration._own.view
    held = session.pull()
    return {
        parameter.name: feedback.residual(view, 0, parameter.offset, parameter.size) - held[parameter.name]
        for parameter in view.layouts[0].parameters
    }


def test_topk_sends_little_and_loses_nothing(whole_numbers):
    session, optimizer, gradient = whole_numbers
    total = {"a": np.zeros(40, "f4"), "b": np.zeros(7, "f4")}
    for number in range(30):
        given = gradient()
        if number % 3 == 2:
            given["b"] = None
        before = session.pull()
        optimizer.step(given)
        moved = sum(np.count_nonzero(now != before[key]) for key, now in session.pull().items())
        assert moved <= 6
        for key, numbers in given.items():
            if numbers is not None:
                total[key] += numbers
    for key, kept in account(session, optimizer).items():
        np.testing.assert_array_equal(kept, total[key])


@pytest.mark.parametrize("seed", range(4))
def test_topk_counts_each_gradient_once_whatever_becomes_of_its_answer(seed, whole_numbers, monkeypatch):
    """Answers that are lost (and asked for again), that are late, and refusals, in any order."""
    session, optimizer, gradient = whole_numbers
    transport = session._transport
    real = transport.step
    random = np.random.default_rng(seed)
    total = {"a": np.zeros(40, "f4"), "b": np.zeros(7, "f4")}
    fate = []

    def step(*args):
        match fate.pop() if fate else "fine":
            case "lost before":
                raise errors.ConnectionLost(address="here", rpc="Step", problem="cut")
            case "lost after":
                real(*args)
                raise errors.ConnectionLost(address="here", rpc="Step", problem="cut")
            case "late before":
                raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")
            case "late after":
                real(*args)
                raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")
        return real(*args)

    monkeypatch.setattr(transport, "step", step)
    monkeypatch.setattr("optd.session.retry.FIRST_PAUSE", 0.001)
    for _ in range(25):
        given = gradient()
        kind = str(random.choice(["fine", "lost before", "lost after", "late before", "late after", "refused"]))
        counts = kind not in ("late before", "refused")
        if kind == "refused":
            given["a"][3] = np.nan
            with pytest.raises(errors.NonfiniteGradient):
                optimizer.step(given)
        elif kind.startswith("late"):
            fate.append(kind)
            with pytest.raises(errors.DeadlineExceeded):
                optimizer.step(given)
        else:
            fate.append(kind)
            optimizer.step(given)
        for key in total:
            total[key] += given[key] if counts else 0
    optimizer.step({"a": np.zeros(40, "f4"), "b": np.zeros(7, "f4")})
    for key, kept in account(session, optimizer).items():
        np.testing.assert_array_equal(kept, total[key])


@pytest.mark.slow
@pytest.mark.parametrize("act", ["step", "push"])
def test_topk_counts_each_gradient_once_whatever_the_wire_loses(act, server, name):
    """The connection is cut after the server has applied a push, and before the server has it."""
    rng = np.random.default_rng(0)
    total = {"a": np.zeros(40, "f4"), "b": np.zeros(7, "f4")}
    weights = {key: array.copy() for key, array in total.items()}
    with (
        Proxy(server.address) as proxy,
        optd.connect(proxy.address, job=name, worker="w0", encoding="topk:0.1", lane="grpc", timeout=30) as session,
    ):
        optimizer = optd.SGD(weights, lr=1.0, session=session)
        repeats = []
        for number in range(12):
            cuts = proxy.cuts
            match number % 3:
                case 1:
                    proxy.lose_answers(1)
                case 2:
                    proxy.cut_upload(1)
            given = {key: rng.integers(-9, 10, array.size).astype("f4") for key, array in total.items()}
            repeats.append(getattr(optimizer, act)(given).repeat)
            assert proxy.cuts == cuts + (number % 3 > 0)
            for key in total:
                total[key] += given[key]
            for key, kept in account(session, optimizer).items():
                np.testing.assert_array_equal(kept, total[key])
        assert repeats == [False, True, False] * 4, "only what had been applied is found again"
        assert session.info().version.version == 12


@pytest.mark.parametrize("before", ["bfloat16", "int8", "topk:0.1"])
def test_topk_goes_on_after_nobody_could_find_out_about_another_push(before, whole_numbers, monkeypatch):
    session, optimizer, gradient = whole_numbers
    transport = session._transport

    def late(*_, **__):
        raise errors.DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    lost = gradient()
    with monkeypatch.context() as patch:
        patch.setattr(transport, "step", late)
        with pytest.raises(errors.DeadlineExceeded):
            optimizer.step(lost, encoding=before)
        patch.setattr(transport, "join", late)
        for _ in range(2):
            with pytest.raises(errors.DeadlineExceeded):
                optimizer.step(gradient())
    total = {"a": np.zeros(40, "f4"), "b": np.zeros(7, "f4")}
    for _ in range(5):
        given = gradient()
        optimizer.step(given)
        for key in total:
            total[key] += given[key]
    if before != "topk:0.1":
        optimizer._registration._outgoing._feedback.pop(before, None)
    for key, kept in account(session, optimizer).items():
        np.testing.assert_array_equal(kept, total[key])


def test_a_step_without_gradients_is_one_of_none(server, name):
    with optd.connect(server.address, job=name) as session:
        weights = np.ones(2)
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.step()
        optimizer.gradients["w"] += 1
        optimizer.step()
        optimizer.zero_grad()
        optimizer.step()
        optimizer.push()
        assert (optimizer.session.groups()[0].max_steps, weights.tolist()) == (1, [0, 0])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda o: o.step(lambda: 1.0),
            errors.StructureMismatch,
            r"a closure's result must have \(loss, gradients\), got float",
        ),
        (
            lambda o: o.step({"w": np.ones(2)}, weight="a"),
            errors.InvalidRequest,
            "weight must be a number, got 'a'",
        ),
        (
            lambda o: o.step({"w": np.ones(2)}, loss_scale=np.ones(2)),
            errors.InvalidRequest,
            r"loss_scale must be a number, got '\[1. 1.\]'",
        ),
        (
            lambda o: o.step({"w": np.ones(2)}, loss_scale=1e60),
            errors.InvalidRequest,
            r"loss_scale of a push must be in \[2\*\*-126, 2\*\*126\], got 1e\+60",
        ),
        (copy.deepcopy, TypeError, "SGD can be neither pickled nor copied: it belongs to a session"),
        (pickle.dumps, TypeError, "SGD can be neither pickled nor copied: it belongs to a session"),
    ],
)
def test_what_is_wrong_is_said_in_words(call, error, says, server, name):
    with optd.connect(server.address, job=name) as session:
        weights = np.ones(2)
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        with pytest.raises(error, match=says):
            call(optimizer)
        assert (optimizer.version, weights.tolist()) == (0, [1, 1])


def test_options_are_as_they_were_after_a_load_that_was_refused(server, name):
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": np.ones(2)}, lr=1.0, session=session)
        before = [dict(group) for group in optimizer.param_groups]
        saved = optimizer.state_dict()
        saved["param_groups"][0].update(lr=-1.0, clip_norm=0.5)
        with pytest.raises(errors.OptionOutOfRange):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups == before


def test_whole_numbers_past_all_floats_are_refused_as_others_are(server, name):
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(errors.OptionOutOfRange, match=r"adam: betas\[0\] must be in \[0, 1\), got inf"):
            optd.Adam({"w": np.ones(2)}, betas=(10**400, 0.9), session=session)
        with pytest.raises(errors.InvalidOption, match=r"lookahead_steps must be a whole number, got inf"):
            optd.Adam({"w": np.ones(2)}, lookahead_steps=10**400, session=session)


def test_weights_that_others_have_written_are_newer_whatever_was_pushed_since(server, name):
    with (
        optd.connect(server.address, job=name, worker="w0", gradients=optd.Gradients(accumulate=2)) as one,
        optd.connect(server.address, job=name, worker="w1", gradients=optd.Gradients(accumulate=2)) as two,
    ):
        weights, tensor = np.ones(2), torch.ones(2, dtype=torch.float64)
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=one)
        other = optd.torch.SGD([("w", tensor)], lr=1.0, session=two)
        tensor.fill_(9)
        other.push_weights()
        optimizer.push({"w": np.ones(2)})
        assert optimizer.pull(only_if_newer=True) is not None
        assert weights.tolist() == [9, 9]
