"""Gradients that are sparse in more than their first dimension: torch's numbers, and who may send which."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd import errors

EACH_DTYPE = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1, "foreach": False}),
    ("SparseAdam", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1, "maximize": True}),
]
SHAPES = ((6, 5), (3, 4, 2), (40,), (2, 3, 2, 2))
# Larger than what the server steps as a whole anyway: only what is named comes back with a step.
LARGE = ((300, 300), (2000, 10, 2))


def random_sparse(shape: tuple[int, ...], dims: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Some of its entries name the same element: sparse gradients may have them several times."""
    count = 5
    places = torch.stack([torch.randint(0, size, (count,), generator=generator) for size in shape[:dims]])
    places = torch.cat([places, places[:, :2]], dim=1)
    values = torch.randn(count + 2, *shape[dims:], dtype=dtype, generator=generator)
    return torch.sparse_coo_tensor(places, values, shape)


@EACH_DTYPE
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
@pytest.mark.parametrize("shapes", [SHAPES, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_gradients_sparse_in_any_dimensions_train_as_in_torch(
    serve: Callable[..., Any], name, options, shapes, dtype, tolerance, zero_copy
):
    generator = torch.Generator().manual_seed(1)
    theirs = [torch.nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in shapes]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    optimizers = (
        getattr(torch.optim, name)(theirs, **options),
        serve(getattr(optd.torch, name), ours, zero_copy=zero_copy, **options),
    )
    for step in range(12):
        for number, (p, q) in enumerate(zip(theirs, ours, strict=True)):
            # One step after the other is sparse in other dimensions, which torch's momentum cannot add up; some are
            # empty.
            dims = p.dim() if "momentum" in options else 1 + (step + number) % p.dim()
            gradient = random_sparse(tuple(p.shape), dims, dtype, generator)
            if (step + number) % 5 == 4:
                gradient = torch.zeros_like(p).to_sparse(dims)
            p.grad, q.grad = (None, None) if (step + number) % 7 == 6 else (gradient, gradient.clone())
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda m: f"step {step}: {m}")  # noqa: B023
    state = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert state[1].keys() == state[0].keys()
    for index, expected in state[0].items():
        for field, value in expected.items():
            dense = value.to_dense() if isinstance(value, torch.Tensor) else value  # torch's momentum stays sparse
            torch.testing.assert_close(state[1][index][field], dense, rtol=tolerance, atol=tolerance)


def test_sparse_adam_moves_only_the_elements_that_are_named(serve: Callable[..., Any]):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = serve(optd.torch.SparseAdam, [weight], lr=0.5)
    for column in (0, 1):
        weight.grad = torch.sparse_coo_tensor([[1], [column]], [1.0], (3, 2))
        before = weight.detach().clone()
        optimizer.step()
        changed = (weight.detach() != before).nonzero().tolist()
        assert changed == [[1, column]]


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_both_lanes_carry_them(serve: Callable[..., Any], server, job_names, lane):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    with optd.connect(server.address, job=next(job_names), worker="w", lane=lane) as session:
        optimizer = optd.torch.SGD([weight], lr=0.5, session=session)
        weight.grad = torch.eye(3, 2).to_sparse()
        optimizer.step()
        assert session.lane == lane
    assert weight.tolist() == [[0.5, 1], [1, 0.5], [1, 1]]


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_encodings_round_their_values_alone(server, job_names, encoding):
    weight = torch.nn.Parameter(torch.zeros(40, 30))
    with optd.connect(server.address, job=next(job_names), lane="grpc", encoding=encoding) as session:
        optimizer = optd.torch.SGD([weight], lr=1.0, session=session)
        weight.grad = torch.sparse_coo_tensor([[1, 39, 7], [2, 29, 0]], [1.0, -2.0, 0.5], (40, 30))
        expected = -weight.grad.to_dense()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=0.01, atol=0.01)
    assert torch.equal(weight.detach() != 0, expected != 0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_workers_may_send_rows_of_one_parameter_in_different_dimensions(server, job_names, accumulate):
    """The sum is that of the dense gradients; each worker gets what the others have changed."""
    job, shape = next(job_names), (30, 20, 2)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for _ in range(3)]
    sessions = [
        optd.connect(server.address, job=job, worker=f"w{n}", gradients=optd.Gradients(accumulate=accumulate))
        for n in range(3)
    ]
    optimizers = [
        optd.torch.SGD([weight], lr=1.0, session=session) for weight, session in zip(weights, sessions, strict=True)
    ]
    expected, waiting = torch.zeros(shape, dtype=torch.float64), []
    for step in range(12):
        number = step % 3
        dims = 1 + (step // 2 + number) % 3
        gradient = random_sparse(shape, dims, torch.float64, generator)
        weights[number].grad = gradient
        optimizers[number].step()
        waiting.append(gradient.to_dense())
        if len(waiting) == accumulate:
            expected -= sum(waiting) / accumulate
            waiting.clear()
        torch.testing.assert_close(weights[number].detach(), expected, rtol=1e-12, atol=1e-12)
    for session in sessions:
        session.close()


def test_a_round_adds_up_rows_in_different_dimensions(server, job_names):
    import threading

    job, shape = next(job_names), (4, 3, 2)
    generator = torch.Generator().manual_seed(2)
    gradients = [random_sparse(shape, dims, torch.float64, generator) for dims in (2, 1, 3)]
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for _ in gradients]

    def work(number: int) -> None:
        with optd.connect(server.address, job=job, worker=f"w{number}", policy=optd.Sync(workers=3)) as session:
            optimizer = optd.torch.SGD([weights[number]], lr=3.0, session=session)
            weights[number].grad = gradients[number]
            optimizer.step()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = -sum(gradient.to_dense() for gradient in gradients)
    for weight in weights:
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_sparse_gradient_without_a_dimension_is_refused(serve: Callable[..., Any]):
    scalar = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = serve(optd.torch.SGD, [scalar], lr=0.5)
    scalar.grad = torch.tensor(1.0).to_sparse()
    with pytest.raises(errors.NotAnArray, match=r"gradient of parameter 'param0' must be dense, as its shape is \(\)"):
        optimizer.step()
    assert optimizer.session.info().version.version == 0
    assert scalar.item() == 1


def test_a_gradient_of_an_empty_matrix(serve: Callable[..., Any]):
    empty, full = torch.nn.Parameter(torch.zeros(3, 0)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = serve(optd.torch.SGD, [empty, full], lr=0.5)
    empty.grad, full.grad = torch.zeros(3, 0).to_sparse(), torch.eye(2).to_sparse()
    optimizer.step()
    assert full.tolist() == [[0.5, 1], [1, 0.5]]
    assert np.array_equal(optimizer.pull_rows("param1", [0]), [[0.5, 1]])
