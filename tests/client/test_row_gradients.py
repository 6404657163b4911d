"""Gradients of some rows of a parameter, over real connections: weights as torch's optimizers make them."""

from typing import Any

import numpy as np
import pytest
import torch

import optd

LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])
ALGORITHMS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("SparseAdam", {"lr": 0.1}),
]
SHAPES = {"table": (400, 3), "cube": (20, 2, 2), "line": (30,), "dense": (50, 4)}


def parameters(dtype: str = "f8") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


class Twin:
    """An optimizer of ours, with two groups, beside torch's."""

    def __init__(self, session: optd.Session, name: str, options: dict[str, Any], dtype: str = "f8", **ours: Any):
        arrays = parameters(dtype)
        self.tensors = {key: torch.nn.Parameter(torch.from_numpy(array.copy())) for key, array in arrays.items()}
        names = [["table", "dense"], ["cube", "line"]]
        theirs = [[self.tensors[key] for key in group] for group in names]
        self.theirs = getattr(torch.optim, name)([{"params": theirs[0]}, {"params": theirs[1], "lr": 0.05}], **options)
        groups = [{key: arrays[key] for key in group} for group in names]
        entries = [{"params": groups[0]}, {"params": groups[1], "lr": 0.05}]
        self.ours = getattr(optd, name)(entries, session=session, **ours, **options)
        self.dense = name != "SparseAdam"
        self.rng = np.random.default_rng(1)

    def gradients(self) -> dict[str, Any]:
        """Random ones, some missing, with rows that are there twice, and with none."""
        given: dict[str, Any] = {}
        for name, tensor in self.tensors.items():
            tensor.grad = None
            if self.rng.random() < 0.2:
                continue
            shape = tuple(tensor.shape)
            dtype = tensor.detach().numpy().dtype
            if name != "dense":
                ids = self.rng.integers(0, shape[0], self.rng.choice([0, 3, 40]))
                rows = self.rng.standard_normal((ids.size, *shape[1:])).astype(dtype)
                given[name] = (ids, rows)
                tensor.grad = torch.sparse_coo_tensor(ids[None], rows, shape, check_invariants=True)
            elif self.dense:
                given[name] = self.rng.standard_normal(shape).astype(dtype)
                tensor.grad = torch.from_numpy(given[name].copy())
        return given

    def assert_equal(self, tolerance: float) -> None:
        for name, tensor in self.tensors.items():
            expected = tensor.detach().numpy()
            np.testing.assert_allclose(self.ours.weights[name], expected, rtol=tolerance, atol=tolerance)


@LANES
@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 1e-6), ("f8", 1e-12)])
@pytest.mark.parametrize(("name", "options"), ALGORITHMS)
def test_a_hundred_steps_are_torchs(server, name, options, lane, dtype, tolerance):
    job = f"{name}-{len(options)}-{options.get('nesterov')}-{lane}-{dtype}"
    with optd.connect(server.address, job=job, lane=lane) as session:
        twin = Twin(session, name, options, dtype)
        for _ in range(100):
            twin.ours.step(twin.gradients())
            twin.theirs.step()
        # torch never adds up a sparse momentum: it takes up to 100 terms from each weight, one by one, and rounds each.
        twin.assert_equal(tolerance * (100 if "momentum" in options else 1))
