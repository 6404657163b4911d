"""Gradients in the structure of the params."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.frozen import Frozen

from optd import errors
from optd.exchange.read_gradients import read_gradients
from optd.exchange.row_gradients import RowGradient
from optd.params import trees
from optd.params.groups import read_groups

Point = namedtuple("Point", "x y")


@dataclass
class Layer:
    w: Any
    b: Any


def a(*shape, dtype="f4"):
    return np.zeros(shape, dtype)


def read(gradients, params):
    groups, in_groups = read_groups(params)
    return [found for row in read_gradients(gradients, groups, in_groups=in_groups) for found in row]


W, B, V = a(2, 3), a(3), a(3, 1, dtype="f8")
GROUPS = [{"params": {"w": W, "b": B}}, {"params": {"v": V}}]
GW, GB, GV = np.ones((2, 3), "f4"), np.ones(3, "f4"), np.ones((3, 1))


@pytest.mark.parametrize(
    "gradients",
    [
        {"w": GW, "b": None, "v": GV},
        {"w": GW, "v": GV},
        [GW, None, GV],
        (GW, None, GV),
        [("w", GW), ("v", GV)],
        [{"w": GW}, [GV]],
        [{"params": [GW, None]}, {"params": {"v": GV}}],
        [{"w": GW}, GV],
        [[("w", GW)], (GV,)],
    ],
)
def test_gradients_have_the_structure_of_the_params(gradients):
    w, b, v = read(gradients, GROUPS)
    assert w is GW
    assert b is None
    assert v is GV


@pytest.mark.parametrize(
    ("gradients", "error", "says"),
    [
        ({"x": GW}, errors.UnknownParameter, "this optimizer has no parameter 'x'"),
        (GW, errors.StructureMismatch, "gradients must have 3 entries, w, b, v, got one ndarray"),
        ([GW], errors.StructureMismatch, "gradients must have 3 entries, got 1"),
        ([[GW, GB]], errors.StructureMismatch, "gradients must have 2 groups, got 1"),
        ([[GW], [GV]], errors.StructureMismatch, "gradients of group 'group0' must have 2 entries, got 1"),
        ({"w": GB}, errors.ShapeMismatch, "gradient of parameter 'w' must have shape (2, 3), got (3,)"),
        ({"w": GW.astype("f8")}, errors.DtypeMismatch, "must have dtype float32, got float64"),
        ({"w": 1.0}, errors.NotAnArray, "gradient of parameter 'w' must be an array, (ids, rows) or None, got float"),
    ],
)
def test_what_is_wrong_with_gradients_is_named(gradients, error, says):
    with pytest.raises(error) as caught:
        read(gradients, GROUPS)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("params", "gradients"),
    [
        ({"enc": {"w": W}, "layers": [B, (V,)]}, {"enc": {"w": GW}, "layers": [GB, (GV,)]}),
        ({"enc": {"w": W}, "layers": [B, (V,)]}, {"enc.w": GW, "layers.0": GB, "layers.1": [GV]}),
        ([{"w": W}, {"b": B, "v": V}], [{"w": GW}, {"v": GV, "b": GB}]),
        ([{"w": W, "b": B, "v": V}], [{"v": GV, "b": GB, "w": GW}]),
        (Point(W, {"b": B, "v": V}), Point(GW, {"b": GB, "v": GV})),
        (Layer(W, Layer(B, V)), Layer(GW, Layer(GB, GV))),
        (Layer(W, Layer(B, V)), {"w": GW, "b": {"w": GB, "b": GV}}),
        ([("enc", {"w": W}), B, V], [("enc", {"w": GW}), GB, GV]),
        ([W, None, B, V], [GW, None, GB, GV]),
        # One tree of gradients for groups that share its branches, as of weights with decay and biases without.
        (
            [{"params": {"layers": [{"w": W}]}}, {"params": {"layers": [{"b": B}], "v": V}}],
            {"layers": [{"w": GW, "b": GB}], "v": GV},
        ),
        ([{"params": {"enc": {"w": W, "b": B}}}, {"params": V}], [{"enc": {"w": GW, "b": GB}}, GV]),
        ([{"params": [[W], [B, V]]}], [[[GW], [GB, GV]]]),
    ],
)
def test_gradients_of_trees(params, gradients):
    found = read(gradients, params)
    assert all(map(lambda one, other: one is other, found, (GW, GB, GV)))


def test_a_branch_may_be_left_out_or_none():
    params = {"enc": {"w": W, "b": B}, "v": V}
    assert read({"v": GV}, params) == [None, None, GV]
    assert read({"enc": None, "v": GV}, params) == [None, None, GV]
    assert read(None, params) == [None, None, None]


def test_other_arrays_are_read():
    (found,) = read([Frozen(np.ones(3, "f4"))], [B])
    np.testing.assert_array_equal(found, GB)


@pytest.mark.parametrize(
    ("gradients", "error", "says"),
    [
        ({"enc": {"x": GW}}, errors.UnknownParameter, "this optimizer has no parameter 'enc.x'"),
        (
            {"enc": {"w": {"x": GW}}},
            errors.NotAnArray,
            "gradient of parameter 'enc.w' must be an array, (ids, rows) or None, got d",
        ),
        ({"enc": GW}, errors.StructureMismatch, "gradients at 'enc' must have 2 entries, enc.w, enc.b, got one ndarr"),
        ({"enc": {"w": GB}}, errors.ShapeMismatch, "gradient of parameter 'enc.w' must have shape (2, 3), got (3,)"),
        ({"enc": {"w": GW}, "enc.w": GW}, errors.StructureMismatch, "must have one entry for parameter 'enc.w', got t"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(gradients, error, says):
    with pytest.raises(error) as caught:
        read(gradients, {"enc": {"w": W, "b": B}, "v": V})
    assert says in str(caught.value)


def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=3)
    dicts = st.dictionaries(st.sampled_from("abc") | st.integers(0, 3), inner, max_size=3)
    return lists | lists.map(tuple) | dicts | st.builds(Point, inner, inner) | st.builds(Layer, inner, inner)


LEAVES = st.builds(lambda: np.zeros(1))
TREES = nodes(st.recursive(st.none() | LEAVES, nodes, max_leaves=8)).filter(lambda tree: any(trees.leaves(tree)))


def gradients_like(tree):
    """A tree of the same structure with other arrays, and these arrays in order."""
    made = [np.ones(1) for _ in trees.leaves(tree)]
    return trees.rebuild(trees.outline(tree), iter(made)), made


@given(TREES)
def test_gradients_of_any_tree_come_in_the_order_of_its_parameters(tree):
    gradients, expected = gradients_like(tree)
    assert list(map(id, read(gradients, tree))) == list(map(id, expected))
    ((group,), in_groups) = read_groups(tree)
    assert not in_groups
    assert list(map(id, group.arrays)) == [id(leaf) for _, leaf in trees.leaves(tree)]
    assert trees.outline(trees.rebuild(group.outline, iter(group.arrays))) == trees.outline(tree)
    assert read(dict(zip(group.names, expected, strict=True)), tree) == expected


@given(st.lists(TREES | st.lists(LEAVES, min_size=1, max_size=3) | LEAVES, min_size=1, max_size=3), st.data())
def test_gradients_of_groups_of_any_trees_come_in_order(given_trees, data):
    # Of trees in several groups the names must differ; plain lists and single arrays are numbered.
    named = [tree if isinstance(tree, np.ndarray) else {f"g{place}": tree} for place, tree in enumerate(given_trees)]
    found = [gradients_like(tree) for tree in named]
    expected = [gradient for _, made in found for gradient in made]
    wrapped = [{"params": tree} if data.draw(st.booleans()) else tree for tree, _ in found]
    assert list(map(id, read(wrapped, [{"params": tree} for tree in named]))) == list(map(id, expected))


IDS, ROWS = [1, 0, 1], np.ones((3, 3), "f4")


@pytest.mark.parametrize(
    ("gradients", "params"),
    [
        ({"w": (IDS, ROWS)}, {"w": W}),
        ([(IDS, ROWS)], [W]),
        ([("w", (IDS, ROWS))], [("w", W)]),
        ([(IDS, ROWS), None], [W, B]),
        (((IDS, ROWS), None), (W, B)),
        ({"enc": {"w": (IDS, ROWS)}}, {"enc": {"w": W, "b": B}}),
        ([{"w": (IDS, ROWS)}, None], [{"params": {"w": W, "b": B}}, {"params": {"v": V}}]),
        ([(IDS, ROWS), {"v": GV}], [{"params": {"w": W}}, {"params": {"v": V}}]),
        (Layer((IDS, ROWS), None), Layer(W, B)),
    ],
)
def test_rows_stand_in_the_place_of_an_array(gradients, params):
    found = read(gradients, params)[0]
    assert isinstance(found, RowGradient)
    assert found.ids.tolist() == IDS
    assert found.values is ROWS


def test_two_arrays_are_rows_only_where_one_is_expected():
    """Of a tuple of two parameters a tuple of two arrays are two gradients."""
    found = read({"layer": (GW, GB)}, {"layer": (W, B)})
    assert found[0] is GW
    assert found[1] is GB


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        (([0, 2], np.ones((2, 3), "f4")), errors.RowOutOfRange, "rows of parameter 'w' must be in [0, 2), got 2"),
        (([0.5], np.ones((1, 3), "f4")), errors.NotAnArray, "rows of parameter 'w' must be integers in one dimension"),
        ((IDS, ROWS[:2]), errors.ShapeMismatch, "gradient of rows of parameter 'w' must have shape (3, 3), got (2, 3)"),
        ((IDS, ROWS.astype("f8")), errors.DtypeMismatch, "must have dtype float32, got float64"),
        ((IDS, "rows"), errors.NotAnArray, "gradient of parameter 'w' must be (ids, array), got (ids, str)"),
        ((IDS, None), errors.NotAnArray, "got (ids, NoneType)"),
    ],
)
def test_what_is_wrong_with_rows_is_named(rows, error, says):
    with pytest.raises(error) as caught:
        read({"w": rows}, {"w": W})
    assert says in str(caught.value)


def test_a_parameter_without_a_dimension_has_no_rows():
    with pytest.raises(errors.InvalidRequest, match="parameter 's' has no rows"):
        read({"s": ([0], np.ones(1, "f4"))}, {"s": a()})
