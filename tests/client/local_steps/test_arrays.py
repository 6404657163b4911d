"""`optd.LocalSteps`: what it takes and shows."""

import copy
import pickle

import numpy as np
import pytest
from tests.client.local_steps.problem import together

import optd
from optd import errors

PLAIN = {"algorithm": "sgd", "lr": 1.0}


def test_groups_have_options_of_the_outer_optimizer(server, name):
    one, other = np.zeros(2), np.zeros((), np.float32)
    groups = [{"params": {"one": one}, "lr": 0.5}, {"params": [("other", other)], "name": "last"}]
    with optd.LocalSteps(groups, every=1, outer=PLAIN, server=server.address, job=name) as local:
        assert [(group["name"], group["lr"]) for group in local.param_groups] == [("group0", 0.5), ("last", 1.0)]
        one += 1
        other += 1
        local.step()
        assert (one.tolist(), float(other)) == ([0.5, 0.5], 1.0)
        local.param_groups[1]["lr"] = 0.25
        other += 1
        local.step()
        assert float(other) == 1.25
        assert local.fragments == (("one", "other"),)
        assert (local.every, local.version, local.unsent, local.last.applied_version) == (1, 2, 0, 2)


def test_arrays_of_any_layout_are_written_in_place(server, name):
    whole = np.zeros((4, 6))
    part = whole[::2, 1:4].T
    with optd.LocalSteps([part], every=2, outer=PLAIN, server=server.address, job=name) as local:
        for _ in range(2):
            part += 1
            local.step()
        assert (part == 2).all()
        assert whole.sum() == 12
        assert (local.session.pull()["param0"] == 2).all()


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("steps", [15, 18])
def test_after_a_sync_the_arrays_are_the_global_weights_also_with_a_delay(server, name, alpha, fragments, steps):
    """A difference that is sent by `sync` meets no later local steps, so there is nothing to mix."""
    weights = {"w": np.ones(3), "b": np.ones(2)}
    settings = {"every": 6, "delay": 2, "alpha": alpha, "fragments": fragments}
    with optd.LocalSteps(weights, server=server.address, job=name, **settings) as local:
        for _ in range(steps):
            for array in weights.values():
                array[...] = 0.9 * array
            local.step()
        local.sync()
        found = local.session.pull()
        assert local.unsent == 0
    for key, array in weights.items():
        np.testing.assert_array_equal(found[key], array)


def test_what_it_cannot_change_is_refused(server, name):
    where = {"every": 2, "server": server.address, "job": name}
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    with pytest.raises(errors.NotAnArray, match="'param0'.*an array that can be written to"):
        optd.LocalSteps([fixed], **where)
    with pytest.raises(errors.NotAnArray, match="a numpy array, which local steps can change in place"):
        optd.LocalSteps([np.float64(1)], **where)
    with pytest.raises(errors.InvalidRequest, match="fragments must be at most 1, the number of parameters"):
        optd.LocalSteps([np.zeros(3)], fragments=2, **where)
    with pytest.raises(errors.InvalidRequest, match="weight must be more than 0, got 0"):
        optd.LocalSteps([np.zeros(3)], weight=0, **where)
    with pytest.raises(errors.InvalidRequest, match="delay must be a whole number, got 1.5"):
        optd.LocalSteps([np.zeros(3)], delay=1.5, **where)
    with optd.connect(server.address) as session, pytest.raises(errors.InvalidRequest, match="worker= must be given"):
        optd.LocalSteps([np.zeros(3)], every=2, session=session, worker="w9")


def test_it_belongs_to_its_session(server, name):
    with optd.LocalSteps([np.zeros(3)], every=2, server=server.address, job=name) as local:
        for copied in (copy.copy, pickle.dumps):
            with pytest.raises(TypeError, match="LocalSteps can be neither pickled nor copied"):
                copied(local)
        assert local.session.is_open
    assert not local.session.is_open


def test_the_weight_of_a_worker_counts_in_the_mean(server, name):
    arrays = [{"w": np.zeros(2)} for _ in range(2)]
    sessions = [optd.connect(server.address, job=name, worker=f"w{i}", policy=optd.Sync(workers=2)) for i in range(2)]
    workers = [
        optd.LocalSteps(own, every=1, delay=0, outer=PLAIN, session=session, weight=weight)
        for own, session, weight in zip(arrays, sessions, (1, 3), strict=True)
    ]

    arrays[0]["w"] += 4
    together([each.step for each in workers])
    assert arrays[0]["w"].tolist() == arrays[1]["w"].tolist() == [1, 1]
    workers[0].weight = 9
    arrays[0]["w"] += 4
    together([each.step for each in workers])
    assert arrays[1]["w"].tolist() == [4, 4]
    for session in sessions:
        session.close()
