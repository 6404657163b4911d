"""Training whatever tree the parameters are kept in: gradients and weights have its structure."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.client.frozen import Frozen

import optd
from optd import errors
from optd.params.trees import leaves, outline, rebuild

State = namedtuple("State", "layers head")


@dataclass(frozen=True)
class Layer:
    w: Any
    b: Any


def arrays(make: Any) -> list[Any]:
    return [make(np.full(shape, 2.0, "f4")) for shape in [(2, 3), (3,), (), (4,)]]


def in_a_dict(w: Any, b: Any, s: Any, v: Any) -> Any:
    return {"layers": [{"w": w, "b": b}, None], "head": (s, v)}


def in_a_namedtuple(w: Any, b: Any, s: Any, v: Any) -> Any:
    return State([Layer(w, b)], {"s": s, "v": v})


def in_a_list(w: Any, b: Any, s: Any, v: Any) -> Any:
    return [w, b, s, v]


def plain(tree: Any) -> Any:
    return rebuild(outline(tree), iter([np.asarray(leaf).tolist() for _, leaf in leaves(tree)]))


BUILDERS = [in_a_dict, in_a_namedtuple, in_a_list]


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("make", [np.array, Frozen])
@pytest.mark.parametrize("build", BUILDERS)
def test_weights_have_the_structure_of_the_params(server, name, build, make, zero_copy) -> None:
    where = {"lane": "shm"} if zero_copy else {}
    with optd.connect(server.address, job=name, worker="w0", **where) as session:
        given = build(*arrays(make))
        optimizer = optd.SGD(given, lr=0.5, session=session, zero_copy=zero_copy)
        expected = build(*arrays(np.array))
        assert plain(optimizer.params) == plain(expected)
        for number in (1.5, 1.0):
            result = optimizer.step(build(*(np.ones_like(np.asarray(leaf)) for leaf in arrays(make))))
            expected = build(*(np.full_like(array, number) for array in arrays(np.array)))
            assert plain(optimizer.params) == plain(expected)
            assert plain(optimizer.pull()) == plain(expected)
        assert result.version.version == 2
        optimizer.push(build(*(make(np.ones_like(array)) for array in arrays(np.array))))
        assert plain(optimizer.params) == plain(expected), "a push leaves the weights"
        pulled = optimizer.pull(only_if_newer=True)
        assert plain(pulled) == plain(build(*(np.full_like(array, 0.5) for array in arrays(np.array))))
        assert optimizer.pull(only_if_newer=True) is None
        assert type(pulled) is type(given)
        own = [leaf for _, leaf in leaves(given)]
        for mine, now in zip(own, (leaf for _, leaf in leaves(optimizer.params)), strict=True):
            assert type(now) is type(mine)
            assert (now is mine) == (make is np.array and not zero_copy)
            if make is Frozen:
                assert np.all(np.asarray(mine) == 2), "nobody writes to it"


def test_leaves_stay_what_they_were_when_the_next_ones_come(server, name) -> None:
    with optd.SGD({"w": Frozen(np.zeros(2))}, lr=1.0, server=server.address, job=name) as optimizer:
        first = optimizer.params["w"]
        assert optimizer.params["w"] is optimizer.weights["w"] is first
        optimizer.step({"w": Frozen(np.ones(2))})
        second = optimizer.params["w"]
        optimizer.step({"w": Frozen(np.ones(2))})
        assert [first.tolist(), second.tolist(), optimizer.params["w"].tolist()] == [[0, 0], [-1, -1], [-2, -2]]


def test_who_attaches_gets_the_weights_of_the_job(server, name) -> None:
    tree = {"base": Layer(np.ones(2), np.ones(1))}
    flat = {"base.w": Frozen(np.zeros(2)), "base.b": Frozen(np.zeros(1))}
    with (
        optd.SGD(tree, lr=1.0, server=server.address, job=name, worker="w0") as one,
        optd.SGD(flat, lr=1.0, server=server.address, job=name, worker="w1") as two,
    ):
        assert plain(two.params) == {"base.w": [1, 1], "base.b": [1]}
        one.step({"base.w": np.ones(2)})
        assert plain(two.pull()) == {"base.w": [0, 0], "base.b": [1]}


def test_groups_of_trees(server, name) -> None:
    decayed, other = {"layer": {"w": np.ones(2)}}, {"layer": {"b": np.ones(1)}}
    groups = [{"params": decayed, "lr": 1.0}, {"params": other}]
    with optd.SGD(groups, lr=0.5, server=server.address, job=name) as optimizer:
        optimizer.step({"layer": {"w": np.ones(2), "b": np.ones(1)}})
        assert plain(optimizer.params) == [{"layer": {"w": [0, 0]}}, {"layer": {"b": [0.5]}}]
        optimizer.step([{"layer": {"w": np.ones(2)}}, None])
        optimizer.add_param_group({"params": [("extra", [np.ones(1)])], "lr": 2.0})
        optimizer.step({"extra": [np.ones(1)]})
        *trees, pairs = optimizer.pull()
        assert plain(trees) == [{"layer": {"w": [-1, -1]}}, {"layer": {"b": [0.5]}}]
        assert [(name, plain(tree)) for name, tree in pairs] == [("extra", [[-1]])]
        assert [group.parameters for group in optimizer.session.groups()] == [1, 1, 1]


def test_a_tree_gets_groups_when_one_is_added(server, name) -> None:
    with optd.SGD({"w": np.ones(1)}, lr=1.0, server=server.address, job=name) as optimizer:
        optimizer.add_param_group({"params": {"v": Frozen(np.ones(1))}})
        optimizer.step([{"w": np.ones(1)}, {"v": np.ones(1)}])
        assert plain(optimizer.params) == [{"w": [0]}, {"v": [0]}]
        with pytest.raises(errors.StructureMismatch, match="group 2 must have a dict with the key 'params'"):
            optimizer.add_param_group({"parms": [np.ones(1)]})


def test_a_pull_of_a_part_gives_the_whole_tree(server, name) -> None:
    tree = {"a": Frozen(np.zeros(1)), "b": Frozen(np.zeros(1))}
    with (
        optd.SGD(tree, lr=1.0, server=server.address, job=name, worker="w0") as one,
        optd.SGD(tree, lr=1.0, server=server.address, job=name, worker="w1") as two,
    ):
        one.step([np.ones(1), np.ones(1)])
        assert plain(two.pull(parameters=["b"])) == {"a": [0], "b": [-1]}


def test_a_closure_returns_gradients_of_the_tree(server, name) -> None:
    with optd.SGD((np.ones(1), [np.ones(1)]), lr=1.0, server=server.address, job=name) as optimizer:
        assert optimizer.step(lambda: (3.5, (np.ones(1), None))) == 3.5
        assert plain(optimizer.params) == ([0], [[1]])


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, errors.DuplicateName, "parameter name 'a.b' is used twice"),
        ({"a": {"b\t": np.ones(1)}}, errors.InvalidName, r"'a.b\\t'"),
        ({"a": {"lr": 0.1}}, errors.NotAnArray, "parameter 'a.lr' must be an array, got float"),
    ],
)
def test_a_tree_that_is_refused_is_named_by_the_path(server, name, params, error, says) -> None:
    with pytest.raises(error, match=says):
        optd.SGD(params, server=server.address, job=name)
