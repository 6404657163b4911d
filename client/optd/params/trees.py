"""Trees of arrays, as numpy and JAX programs keep parameters: taken apart into named leaves, and rebuilt.

A tree is a mapping, list, tuple, namedtuple or dataclass of trees. None is a tree without leaves; anything else is a
leaf. The name of a leaf is its path: keys, fields and places, joined by dots, as torch names the parameters of a
module: `encoder.layers.0.bias`. Fields of a dataclass that are marked as no data (`static=True` or `pytree_node=False`
in their metadata, as the libraries around JAX do) belong to the structure.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final

from optd_wire.errors import StructureMismatch


class _Leaf:
    def __repr__(self) -> str:
        return "LEAF"


LEAF: Final = _Leaf()
"""Stands for a leaf in an outline."""

Paths = dict[str, tuple[str, ...]]
"""For each inner node of a tree, by its path, the paths of its children; the root's path is empty."""


def join(path: str, key: str) -> str:
    """The path of a child."""
    return f"{path}.{key}" if path else key


def children(tree: Any) -> list[tuple[str, Any]] | None:
    """A node's children with their keys; None for a leaf."""
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        return [(str(key), child) for key, child in tree.items()]
    if _is_dataclass(tree):
        return [(name, getattr(tree, name)) for name in _data_fields(tree)]
    if is_namedtuple(tree):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, list | tuple):
        return [(str(place), child) for place, child in enumerate(tree)]
    return None


def is_namedtuple(tree: Any) -> bool:
    """Whether a tuple has names for its places."""
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _data_fields(tree: Any) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(tree)
        if not field.metadata.get("static") and field.metadata.get("pytree_node", True)
    ]


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves with their paths, in the order of their containers."""
    found = children(tree)
    if found is None:
        yield path, tree
        return
    for key, child in found:
        yield from leaves(child, join(path, key))


def outline(tree: Any) -> Any:
    """The tree with `LEAF` for each leaf."""
    return _with_children(tree, outline)


def rebuild(shape: Any, values: Iterator[Any]) -> Any:
    """Rebuilds a tree from its outline `shape`, with leaves from `values` in order; names in it stay."""
    if shape is LEAF or isinstance(shape, str):
        return next(values) if shape is LEAF else shape
    return _with_children(shape, lambda child: rebuild(child, values))


def _with_children(tree: Any, change: Any) -> Any:
    """A copy of a node with changed children; `LEAF` for a leaf."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return _like_mapping(tree, {key: change(child) for key, child in tree.items()})
    if _is_dataclass(tree):
        return _like_dataclass(tree, {name: change(getattr(tree, name)) for name in _data_fields(tree)})
    if is_namedtuple(tree):
        return type(tree)._make(map(change, tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map(change, tree))
    return LEAF


def _like_mapping(tree: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    if type(tree) is dict:
        return changed
    if isinstance(tree, MutableMapping):  # a copy keeps what is not an entry, such as the factory of a defaultdict
        made = copy.copy(tree)
        made.update(changed)
        return made
    constructor: Any = type(tree)
    return constructor(changed)


def _like_dataclass(tree: Any, changed: dict[str, Any]) -> Any:
    made = copy.copy(tree)
    for name, child in changed.items():
        object.__setattr__(made, name, child)  # works on frozen dataclasses too
    return made


def paths(tree: Any, path: str = "") -> Paths:
    """The inner nodes of a tree. Raises as `paths_of`."""
    found = children(tree)
    return {} if found is None else paths_of(found, path)


def paths_of(entries: Sequence[tuple[str, Any]], path: str = "") -> Paths:
    """The inner nodes of a tree whose root has these entries.

    Raises `StructureMismatch` if two nodes have one path, as in `{"a": {"b": [...]}, "a.b": [...]}`.
    """
    inner = {path: tuple(join(path, key) for key, _ in entries)}
    for key, child in entries:
        below = paths(child, join(path, key))
        for twice in inner.keys() & below.keys():
            raise StructureMismatch(what="params", expected=f"one entry at {twice!r}", got="two")
        inner.update(below)
    return inner


def merge(some: Sequence[Paths]) -> Paths:
    """The inner nodes of several trees that are parts of one."""
    if len(some) == 1:
        return some[0]
    merged: dict[str, dict[str, None]] = {}
    for part in some:
        for path, below in part.items():
            merged.setdefault(path, {}).update(dict.fromkeys(below))
    return {path: tuple(below) for path, below in merged.items()}


def collect(given: Any, inner: Paths, path: str = "", what: str = "gradients") -> Iterator[tuple[str, Any]]:
    """The path and the value in `given` for each leaf of the tree with these inner nodes.

    The tree decides what is a leaf: the value there may be anything. A mapping or a dataclass may leave entries out,
    and may name a whole path (`{"encoder.bias": …}`); None stands for no entry. A list or tuple must have one entry for
    each child of the node; anything else raises `StructureMismatch` with the path. Unknown paths are yielded too: the
    caller checks them.
    """
    if path not in inner:
        yield path, given
        return
    below = inner[path]
    what = f"{what} at {path!r}" if path else what
    found = children(given)
    if found is None:
        wanted = f"{len(below)} entries, {_few(below)}"
        raise StructureMismatch(what=what, expected=wanted, got=f"one {type(given).__name__}")
    if given is None:
        return
    if isinstance(given, list | tuple) and not is_namedtuple(given):
        if len(given) != len(below):
            raise StructureMismatch(what=what, expected=f"{len(below)} entries", got=len(given))
        found = list(zip(below, given, strict=True))
    else:
        found = [(join(path, key), child) for key, child in found]
    for place, child in found:
        yield from collect(child, inner, place, "gradients")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
