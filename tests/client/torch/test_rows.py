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
