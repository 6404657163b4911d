"""A job of two groups, steps of it, and the weights after them."""

import numpy as np
from contract.plain import (
    Plain,
    frame,
    group,
    job_spec,
)

BODY = {"w": ((2, 3), "float32"), "b": ((3,), "float32")}
HEAD = {"v": ((2,), "float64"), "u": ((4,), "float32")}  # u lies before v: float32 comes first in a flat buffer

W = np.arange(6, dtype="f4")
B = np.array([10, 20, 30], "f4")
U = np.array([-1, -2, -3, -4], "f4")
V = np.array([0.5, 0.25], "f8")

INITIAL = [
    frame(np.concatenate([W, B])[:4]),
    frame(U, group=1),
    frame(np.concatenate([W, B])[4:], offset=4),
    frame(V, group=1, offset=4),
]
GRADIENT = [
    frame(np.ones(9, "f4")),
    frame(np.full(4, 2, "f4"), group=1),
    frame(np.full(2, 3, "f8"), group=1, offset=4),
]


def create(plain: Plain, name: str, *, workers: int = 0, **defaults: object) -> None:
    groups = [group("body", BODY), group("head", HEAD, lr=0.25)]
    plain.create(job_spec(name, groups, workers=workers, **{"lr": 0.5, **defaults}), INITIAL)


def assert_weights(plain: Plain, name: str, *, steps: int) -> None:
    """The weights after steps of plain SGD with `GRADIENT`."""
    found = plain.weights(name)
    assert found["w"].tolist() == (W - 0.5 * steps).reshape(2, 3).tolist()
    assert found["b"].tolist() == (B - 0.5 * steps).tolist()
    assert found["u"].tolist() == (U - 0.5 * steps).tolist()
    assert found["v"].tolist() == (V - 0.75 * steps).tolist()


def ids_bytes(*ids: int) -> bytes:
    return np.array(ids, "<u8").tobytes()
