"""The state of L-BFGS as torch has it, all on the first parameter, and as a job has it, a part on each parameter.

What torch keeps besides, which follows from the rest, is worked out here: `ro`, `H_diag` and `al`.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from math import prod
from typing import Any

import numpy as np

from optd.params.flat_view import Array
from optd.state.all_parameters import STEP, ParameterState
from optd_wire.errors import InvalidRequest, ShapeMismatch

VECTORS = ("d", "prev_flat_grad")
SERIES = ("old_dirs", "old_stps")


def gather(row: Sequence[ParameterState], history_size: int) -> ParameterState:
    """The state of the first parameter, as torch has it, with numpy's arrays and scalars for its tensors.

    `row` has what `Registration.read_state` gives of each parameter of the one group; vectors are one after the other.
    """
    first = row[0] if row else {}
    if "func_evals" not in first:
        return {}
    iterations = int(first["n_iter"])
    gathered: ParameterState = {"func_evals": int(first["func_evals"]), "n_iter": iterations}
    if "d" not in first:
        return gathered
    direction, gradient = (_whole(row, name) for name in VECTORS)
    of_gradient, of_weights = (_whole_series(row, name) for name in SERIES)
    inverses = [1.0 / np.dot(*pair) for pair in zip(of_gradient, of_weights, strict=True)]
    if iterations > 1:
        shares = _shares(gradient, of_gradient, of_weights, inverses)
        gathered["al"] = shares + [None] * (history_size - len(shares))
    distance = float(first["t"])
    last = of_gradient[-1] if of_gradient else None
    return gathered | {
        "d": direction,
        "t": direction.dtype.type(distance) if float(first["t_is_tensor"]) else distance,
        "old_dirs": of_gradient,
        "old_stps": of_weights,
        "ro": inverses,
        "H_diag": 1 if last is None else np.dot(last, of_weights[-1]) / np.dot(last, last),
        "prev_flat_grad": gradient,
        "prev_loss": float(first["prev_loss"]),
    }


def spread(
    state: Mapping[str, Any], names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]
) -> list[ParameterState]:
    """What each parameter of the one group has of what `gather` gave: the way back.

    Entries that are None are as good as absent, and what follows from the rest is not looked at. Raises
    `ShapeMismatch`, or `InvalidRequest` where something is missing.
    """
    given = {name: value for name, value in state.items() if value is not None}
    if not given:
        return [{} for _ in shapes]
    begun = any(name in given for name in ("d", "t", *VECTORS, *SERIES))
    needed = ("func_evals", "n_iter", *(("t", "prev_loss", *VECTORS, *SERIES) if begun else ()))
    for name in needed:
        if name not in given:
            raise InvalidRequest(problem=f"state of lbfgs must have {name} with the rest")
    numbers = {"func_evals": given["func_evals"], "n_iter": given["n_iter"]}
    vectors: dict[str, Any] = {}
    if "d" in given:
        numbers |= {"t": given["t"], "prev_loss": given["prev_loss"]}
        numbers["t_is_tensor"] = not isinstance(given["t"], int | float) or isinstance(given["t"], np.floating)
        vectors |= {name: given[name] for name in VECTORS}
        vectors |= {f"{name}.{place}": each for name in SERIES for place, each in enumerate(given[name])}
    rows: list[ParameterState] = [{STEP: 1} for _ in shapes]
    for name, vector in vectors.items():
        parts = _parts(name, np.asarray(vector), names, shapes)
        for own, part in zip(rows, parts, strict=True):
            own[name] = part.astype(dtype, copy=False)
    if rows:
        rows[0] |= {name: np.asarray(float(value), np.float64) for name, value in numbers.items()}
    return rows


def _whole(row: Sequence[ParameterState], name: str) -> Array:
    return np.concatenate([own[name].reshape(-1) for own in row])


def _whole_series(row: Sequence[ParameterState], name: str) -> list[Array]:
    whole = []
    for place in count():
        if f"{name}.{place}" not in row[0]:
            break
        whole.append(_whole(row, f"{name}.{place}"))
    return whole


def _shares(gradient: Array, of_gradient: list[Array], of_weights: list[Array], inverses: list[Any]) -> list[Any]:
    """What the first loop of the last direction found of each pair: see the server's `lbfgs`."""
    left = np.negative(gradient)
    shares: list[Any] = []
    for changed, moved, inverse in zip(reversed(of_gradient), reversed(of_weights), reversed(inverses), strict=True):
        shares.insert(0, np.dot(moved, left) * inverse)
        left = left + -shares[0] * changed
    return shares


def _parts(name: str, vector: Array, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    sizes = [prod(shape) for shape in shapes]
    if vector.shape != (sum(sizes),):
        raise ShapeMismatch(what=name, parameter=names[0], expected=(sum(sizes),), got=vector.shape)
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
