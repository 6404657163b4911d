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


@pytest.mark.parametrize("lane", ["grpc", pytest.param("shm", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "tolerance"), [pytest.param("f4", 1e-6, marks=pytest.mark.slow), ("f8", 1e-12)])
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


@LANES
def test_many_rows_go_and_come_in_many_messages(server, name, lane):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((120_000, 5)).astype("f4")
    expected = table.copy()
    with optd.connect(server.address, job=name, lane=lane) as session:
        optimizer = optd.SGD({"table": table}, lr=1.0, session=session)
        for _ in range(2):
            ids = rng.permutation(len(table))[:100_000]
            rows = rng.integers(-4, 4, (len(ids), 5)).astype("f4")
            optimizer.step({"table": (ids, rows)})
            expected[ids] -= rows
            assert np.array_equal(table, expected)
        ids = rng.permutation(len(table))[:20_000]
        optimizer.step({"table": (np.tile(ids, 10), np.ones((200_000, 5), "f4"))})
        expected[ids] -= 10
        assert np.array_equal(table, expected)


@pytest.mark.parametrize("encoding", ["bfloat16", "float16", "int8", "topk:0.1"])
def test_rows_lose_no_more_than_an_encoding_says(server, name, encoding):
    """What int8 and topk leave out of a gradient counts with the next one; rows may not have a next one."""
    exact = encoding in ("int8", "topk:0.1")
    with optd.connect(server.address, job=name, lane="grpc", encoding=encoding) as session:
        optimizer = optd.SGD({"table": np.zeros((50, 3)), "dense": np.zeros(4)}, lr=1.0, session=session)
        rows = np.array([[1.001, 0.3, -2.7]])
        optimizer.push({"table": ([7], rows), "dense": np.array([1.0, 0, 0, 0])})
        found = session.pull()["table"]
        np.testing.assert_allclose(found[7], -rows[0], rtol=0 if exact else 2**-8)
        assert not np.delete(found, 7, axis=0).any()


def test_gradients_of_the_last_step_are_not_there_for_rows(server, plain, name):
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"dense": np.zeros(4), "table": np.zeros((5, 2))}, lr=1.0, session=session)
        optimizer.step({"table": ([1], np.ones((1, 2))), "dense": np.ones(4)})
    result, _ = plain.read_state(name, "gradient")
    assert list(result.groups[0].entries[0].present) == [True, False]
