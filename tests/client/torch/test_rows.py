"""Rows of an embedding, pulled by their numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import optd.torch
from optd import errors


def test_rows_are_a_tensor(serve: Callable[..., Any]):
    embedding = torch.nn.Embedding(10, 3, dtype=torch.float64)
    before = embedding.weight.detach().clone()
    optimizer = serve(optd.torch.SGD, embedding.named_parameters(), lr=1.0)
    embedding(torch.tensor([2, 4])).sum().backward()
    optimizer.push()
    ids = torch.tensor([4, 0, 4])
    found = optimizer.pull_rows("weight", ids)
    assert found.dtype == torch.float64
    assert torch.equal(found, before[ids] - torch.tensor([[1.0], [0.0], [1.0]]))
    assert torch.equal(embedding.weight, before)
    assert torch.equal(optimizer.pull_rows("weight", [2]), before[[2]] - 1)
    with pytest.raises(errors.RowOutOfRange, match="got 10"):
        optimizer.pull_rows("weight", [10])
    with pytest.raises(errors.UnknownParameter, match="'bias'"):
        optimizer.pull_rows("bias", [0])


class Words(torch.nn.Module):
    """Two tables with sparse gradients, one of which is used in some steps only."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.often = torch.nn.EmbeddingBag(200, 5, sparse=True, mode="sum", dtype=dtype)
        self.seldom = torch.nn.Embedding(50, 5, sparse=True, padding_idx=0, dtype=dtype)

    def forward(self, words: torch.Tensor, *, seldom: bool) -> torch.Tensor:
        found = self.often(words)
        return (found + self.seldom(words[:, 0] % 50) if seldom else found).square().sum()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float32, 1e-6, marks=pytest.mark.slow), (torch.float64, 1e-12)],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "options"),
    [("SGD", {"lr": 0.01}), ("Adagrad", {"lr": 0.1, "foreach": False}), ("SparseAdam", {"lr": 0.01, "maximize": True})],
)
@pytest.mark.parametrize("zero_copy", [False, True])
def test_embeddings_train_as_in_torch(serve: Callable[..., Any], name, options, dtype, tolerance, zero_copy):
    torch.manual_seed(0)
    ours, theirs = Words(dtype), Words(dtype)
    theirs.load_state_dict(ours.state_dict())
    pairs = [
        (theirs, getattr(torch.optim, name)(theirs.parameters(), **options)),
        (ours, serve(getattr(optd.torch, name), ours.named_parameters(), zero_copy=zero_copy, **options)),
    ]
    for step in range(100):
        words = torch.randint(0, 200, (8, 4))
        for model, optimizer in pairs:
            optimizer.zero_grad()
            model(words, seldom=step % 3 > 0).backward()
            optimizer.step()
    for (key, found), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=key)


def test_what_torch_refuses_of_sparse_gradients_is_refused(serve: Callable[..., Any]):
    table = torch.nn.Embedding(4, 2, sparse=True)
    for name, options, error, message in [
        ("Adam", {}, errors.RowsNotTaken, "adam takes no sparse gradients"),
        ("RMSprop", {}, errors.RowsNotTaken, "rmsprop takes no sparse gradients"),
        ("Muon", {}, errors.RowsNotTaken, "muon takes no sparse gradients"),
        ("SGD", {"weight_decay": 0.1}, errors.RowsNeedZero, "sgd: weight_decay must be 0"),
        ("Adagrad", {"weight_decay": 0.1}, errors.RowsNeedZero, "rows of parameter 'weight' with 0.1"),
    ]:
        optimizers = [
            getattr(torch.optim, name)(table.parameters(), lr=0.1, **options),
            serve(getattr(optd.torch, name), table.named_parameters(), lr=0.1, job=name, **options),
        ]
        table.zero_grad()
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError):
            optimizers[0].step()
        for call in (optimizers[1].step, optimizers[1].push):
            with pytest.raises(error, match=message):
                call()
        assert optimizers[1].session.info().version.version == 0


def test_sparse_adam_takes_no_dense_gradients(serve: Callable[..., Any]):
    table = torch.nn.Embedding(4, 2)
    optimizer = serve(optd.torch.SparseAdam, table.named_parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(errors.RowsOnly, match="of parameter 'weight'; send its rows, or take adam"):
        optimizer.step()
