"""Differences in each encoding: what is left out of one arrives with later ones, and the weights come back exact."""

import ml_dtypes
import numpy as np
import pytest

import optd

SYNCS = 40
LOSSES = {
    # The most that may be missing after many syncs, in means of one difference.
    "float32": 1e-3,
    "bfloat16:stochastic": 0.1,
    "int8": 0.1,
    "topk:0.25": 6.0,
    "topk:0.05": 30.0,
}


@pytest.mark.parametrize("encoding", LOSSES)
@pytest.mark.parametrize("fragments", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_nothing_of_many_differences_is_lost(server, name, encoding, fragments):
    random = np.random.default_rng(3)
    pace = {key: random.uniform(0.5, 1.5, size).astype(np.float32) for key, size in (("a", 400), ("b", 300), ("c", 77))}
    weights = {key: np.zeros_like(each) for key, each in pace.items()}
    options = {"every": 4, "fragments": fragments, "outer": {"algorithm": "sgd", "lr": 1.0}, "encoding": encoding}
    # The random bits of "stochastic" follow from the worker's name: with a given one they are always the same.
    with optd.LocalSteps(weights, server=server.address, job=name, worker="w0", **options) as local:
        assert local.session.lane == "grpc"
        for _ in range(4 * SYNCS):
            for key, each in pace.items():
                weights[key] += each / 4
            local.step()
        local.sync()
        found = local.session.pull()
    for key, each in pace.items():
        np.testing.assert_array_equal(found[key], weights[key], err_msg="the weights come back as they are")
        missing = np.abs(SYNCS * each - found[key]).max()
        assert missing < LOSSES[encoding], "without feedback a part of each difference would be missing"


def test_an_unknown_encoding_is_refused(server, name):
    with pytest.raises(optd.errors.UnknownEncoding):
        optd.LocalSteps([np.zeros(3)], every=2, encoding="int7", server=server.address, job=name)
    with optd.connect(server.address, job=name) as session, pytest.raises(optd.errors.UnknownJob):
        session.info()


def test_over_shared_memory_an_encoding_is_refused_as_for_any_push(server, name):
    with optd.connect(server.address, job=name, lane="shm") as session:
        local = optd.LocalSteps([np.zeros(3)], every=1, encoding="int8", session=session)
        with pytest.raises(optd.errors.InvalidRequest, match="lane 'shm' carries numbers unchanged"):
            local.step()


@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("delay", [0, 2])
def test_differences_travel_in_shared_memory(server, name, fragments, delay):
    weights = {"a": np.zeros(300), "b": np.zeros(200)}
    options = {"every": 4, "fragments": fragments, "delay": delay, "outer": {"algorithm": "sgd", "lr": 1.0}}
    with optd.connect(server.address, job=name, lane="shm") as session:
        with optd.LocalSteps(weights, session=session, alpha=0.0, **options) as local:
            for _ in range(8):
                for key in weights:
                    weights[key] += 1
                local.step()
            if not delay:
                local.sync()
        assert session.lane == "shm"
        found = session.pull()
    for key, each in weights.items():
        np.testing.assert_array_equal(found[key], each)
    if not delay:
        assert found["a"][0] == 8


@pytest.mark.parametrize("fragments", [1, 2])
def test_weights_come_back_as_the_session_says_and_differences_are_to_what_came(server, name, fragments):
    """Else the rounding of the weights would travel as a part of each difference."""
    pace = np.linspace(0.5, 1.5, 200, dtype=np.float32)
    weights = {key: np.zeros(200, np.float32) for key in "ab"}
    options = {"every": 2, "fragments": fragments, "outer": {"algorithm": "sgd", "lr": 1.0}}
    with optd.connect(server.address, job=name, worker="w0", encoding="bfloat16:stochastic") as session:
        with optd.LocalSteps(weights, session=session, **options) as local:
            for _ in range(2 * SYNCS):
                for key in weights:
                    weights[key] += pace / 2
                local.step()
            local.sync()
        found = session.pull()
    for key, array in weights.items():
        np.testing.assert_array_equal(array, found[key].astype(ml_dtypes.bfloat16).astype(np.float32))
        np.testing.assert_allclose(found[key], SYNCS * pace, rtol=5e-3)
