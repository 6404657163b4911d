"""Dataclasses of vectors and numbers as named arrays and texts, and back, exact to the bit.

For values that have to be stored and restored. `flatten` names what a value consists of by its path:
``search.history.of_gradient.3``. Vectors become arrays under their paths; everything else becomes a text that begins
with its kind, so that a Python number, a numpy scalar of either width and a bool come back as what they were:

=====================  ====================================================
``none``               None
``bool true``          a bool
``int 20``             a Python int
``float 3ff0…``        a Python float, as the bytes of an IEEE double, in hex
``float32 3f80…``      a numpy scalar of that dtype, likewise
``text zoom``          a str
``list 3``             a list of so many, which have the paths ``….0`` to ``….2``
``object Point``       a dataclass, whose fields have the paths ``….name``
``same as PATH``       the very array that an earlier path has
``known NAME``         the very array that the caller knows under a name
=====================  ====================================================
"""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Texts: TypeAlias = dict[str, str]

_NOTHING: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})


def flatten(value: object, name: str, known: Mapping[str, npt.NDArray[Any]] = _NOTHING) -> tuple[Arrays, Texts]:
    """Return what a value consists of, with `name` as the path of the whole.

    An array is contained once, however many places of the value have it, and not at all if it is one of `known`. Arrays
    are not copied. Raises TypeError for what is not plain.
    """
    arrays, texts = Arrays(), Texts()
    places = {id(array): f"known {each}" for each, array in known.items()}

    def put(path: str, value: object) -> None:
        if isinstance(value, np.ndarray):
            if id(value) in places:
                texts[path] = places[id(value)]
            else:
                places[id(value)] = f"same as {path}"
                arrays[path] = value
        elif isinstance(value, list):
            texts[path] = f"list {len(value)}"
            for number, each in enumerate(value):
                put(f"{path}.{number}", each)
        elif is_dataclass(value):
            texts[path] = f"object {type(value).__name__}"
            for field in fields(value):
                put(f"{path}.{field.name}", getattr(value, field.name))
        else:
            texts[path] = _text(value, path)

    put(name, value)
    return arrays, texts


def rebuild(
    arrays: Mapping[str, npt.NDArray[Any]],
    texts: Mapping[str, str],
    name: str,
    *classes: type,
    known: Mapping[str, npt.NDArray[Any]] = _NOTHING,
) -> Any:
    """Return the value that `flatten` has made arrays and texts of.

    It consists of the arrays given, not of copies.

    Args:
        arrays: The arrays by their paths.
        texts: Everything else by its path.
        name: The path of the whole.
        *classes: The dataclasses that it may consist of, beside those that annotate their fields.
        known: The arrays that were known when it was flattened, under the same names.

    Raises:
        ValueError: A path is missing, or its text has an unknown kind.
    """

    def array(path: str) -> npt.NDArray[Any]:
        if path not in arrays:
            raise ValueError(f"stored values must have the array {path!r}")
        return arrays[path]

    def take(path: str, allowed: Mapping[str, type]) -> Any:
        if path not in texts:
            return array(path)
        kind, _, rest = texts[path].partition(" ")
        match kind:
            case "same":
                return array(rest.removeprefix("as "))
            case "known" if rest in known:
                return known[rest]
            case "list":
                return [take(f"{path}.{number}", allowed) for number in range(int(rest))]
            case "object" if rest in allowed:
                inner = {
                    field: take(f"{path}.{field}", {**allowed, **classes})
                    for field, classes in _classes_of_fields(allowed[rest]).items()
                }
                return allowed[rest](**inner)
        return _scalar(kind, rest, path)

    return take(name, {each.__name__: each for each in classes})


@cache
def _classes_of_fields(kind: type) -> dict[str, dict[str, type]]:
    """For each field of a dataclass, the dataclasses that its annotation names."""
    hints = typing.get_type_hints(kind)
    return {field.name: {each.__name__: each for each in _classes_in(hints[field.name])} for field in fields(kind)}


def _classes_in(hint: Any) -> Iterator[type]:
    """The dataclasses that an annotation names: itself, or those in a union or a list."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _classes_in(inner)


def _text(value: object, path: str) -> str:
    match value:
        case None:
            return "none"
        case np.floating():
            return f"{value.dtype.name} {_hex(value, value.dtype)}"
        case bool():
            return f"bool {'true' if value else 'false'}"
        case float():
            return f"float {_hex(value, np.dtype(np.float64))}"
        case int():
            return f"int {value}"
        case str():
            return f"text {value}"
    raise TypeError(f"{path} must be a vector, a number, a bool, a text, a list, a dataclass or None, got {value!r}")


def _hex(value: object, dtype: np.dtype[Any]) -> str:
    return np.asarray(value, dtype.newbyteorder(">")).tobytes().hex()


def _scalar(kind: str, rest: str, path: str) -> Any:
    match kind:
        case "none":
            return None
        case "bool":
            return rest == "true"
        case "int":
            return int(rest)
        case "text":
            return rest
        case "float":
            return float(_number(rest, np.dtype(np.float64)))
        case "float32" | "float64":
            return _number(rest, np.dtype(kind))
    raise ValueError(f"stored values must have {path!r} of a kind that is known here, got {kind!r} {rest!r}")


def _number(digits: str, dtype: np.dtype[Any]) -> Any:
    return np.frombuffer(bytes.fromhex(digits), dtype.newbyteorder(">")).astype(dtype)[0]
