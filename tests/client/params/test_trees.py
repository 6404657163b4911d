"""Trees of arrays: taken apart, named, put together again."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optd.errors import StructureMismatch
from optd.params import trees

Point = namedtuple("Point", "x y")


@dataclass
class Layer:
    weight: Any
    bias: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    body: Any
    name: str = field(default="n", metadata={"static": True})
    size: int = field(default=3, metadata={"pytree_node": False})
    derived: Any = field(init=False, default=7.0)


KEYS = st.text("abc_/-", min_size=1, max_size=4) | st.integers(0, 9)
TREES = st.recursive(
    st.none() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(KEYS, inner, max_size=3).map(MappingProxyType)
        | st.builds(Point, inner, inner)
        | st.builds(Layer, inner, inner)
        | st.builds(Frozen, inner)
    ),
    max_leaves=12,
)


@given(TREES)
def test_a_tree_is_put_together_as_it_was(tree: Any) -> None:
    found = list(trees.leaves(tree))
    made = trees.rebuild(trees.outline(tree), iter([leaf for _, leaf in found]))
    assert made == tree
    assert type(made) is type(tree)
    numbered = trees.rebuild(trees.outline(tree), iter(range(len(found))))
    assert list(trees.leaves(numbered)) == [(path, number) for number, (path, _) in enumerate(found)]


@given(TREES)
def test_what_is_collected_from_a_tree_are_its_leaves(tree: Any) -> None:
    assert list(trees.collect(tree, trees.paths(tree))) == list(trees.leaves(tree))
    assert list(trees.collect(None, trees.paths(tree))) == ([("", None)] if trees.children(tree) is None else [])


def test_names_are_paths() -> None:
    tree = {"enc": [Layer(1, 2), Layer(3)], "at": Point(4, (5,)), 0: Frozen({"w": 6}), "none": None, "empty": {}}
    assert list(trees.leaves(tree)) == [
        ("enc.0.weight", 1),
        ("enc.0.bias", 2),
        ("enc.1.weight", 3),
        ("at.x", 4),
        ("at.y.0", 5),
        ("0.body.w", 6),
        ("0.derived", 7.0),
    ]


def test_what_a_container_knows_beside_its_entries_stays() -> None:
    tree = defaultdict(list, {"a": 1})
    made = trees.rebuild(trees.outline(tree), iter([2]))
    assert (made, made["b"], tree) == ({"a": 2, "b": []}, [], {"a": 1})
    layer = Frozen(1, name="other", size=5)
    assert trees.rebuild(trees.outline(layer), iter([2, 8.0])).size == 5
    assert layer.body == 1


TREE = {"enc": {"w": 1, "b": 2}, "layers": [3, (4, 5)], "at": Point(6, 7)}
INNER = trees.paths(TREE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"enc": {"b": 20}}, {"enc.b": 20}),
        ({"enc": None, "layers": [None, (4, None)]}, {"layers.0": None, "layers.1.0": 4, "layers.1.1": None}),
        ({"enc.b": 20, "layers.1": [1, 2]}, {"enc.b": 20, "layers.1.0": 1, "layers.1.1": 2}),
        ({"layers": [(1, 2), ((3, 4), 5)]}, {"layers.0": (1, 2), "layers.1.0": (3, 4), "layers.1.1": 5}),
        ({"at": (1, 2)}, {"at.x": 1, "at.y": 2}),
        ({"enc": {"x": 1}}, {"enc.x": 1}),  # for the caller, who knows the leaves
    ],
)
def test_the_tree_says_what_is_a_leaf(given: Any, expected: dict[str, Any]) -> None:
    assert dict(trees.collect(given, INNER)) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layers": [1]}, "gradients at 'layers' must have 2 entries, got 1"),
        ({"layers": [1, 2]}, "gradients at 'layers.1' must have 2 entries, layers.1.0, layers.1.1, got one int"),
        ([1, 2], "gradients must have 3 entries, got 2"),
        (5, "gradients must have 3 entries, enc, layers, at, got one int"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(given: Any, says: str) -> None:
    with pytest.raises(StructureMismatch) as caught:
        list(trees.collect(given, INNER))
    assert str(caught.value) == says


def test_the_parts_of_a_tree_are_merged() -> None:
    parts = [trees.paths({"layers": [{"w": 1}], "a": 1}), trees.paths({"layers": [{"b": 1}], "c": 2})]
    assert trees.merge(parts) == {
        "": ("layers", "a", "c"),
        "layers": ("layers.0",),
        "layers.0": ("layers.0.w", "layers.0.b"),
    }
