"""A small transformer, and its twin with one torch optimizer for each algorithm, for tests of mixed algorithms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

EXACT = 1e-12


# Muon's iteration is in bfloat16, which rounds numbers that hardly differ to numbers that are 2**-8 apart.
MUON = 5e-4


LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


class Block(nn.Module):
    """A small transformer: an embedding, one layer of attention, a head.

    Without biases of the attention: the gradient of the keys' bias is 0 but for rounding, which AdamW makes large.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 11)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(tokens)
        attended, _ = self.attention(embedded, embedded, embedded, need_weights=False)
        return self.head(self.mlp(self.norm(embedded + attended)))

    def parts(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The matrices of the hidden layers, and the rest, by name."""
        named = dict(self.named_parameters())
        matrices = {name: each for name, each in named.items() if each.ndim == 2 and name.startswith(("att", "mlp"))}
        return matrices, {name: each for name, each in named.items() if name not in matrices}


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(100 + step))
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def groups_of(model: Block) -> list[dict[str, Any]]:
    matrices, rest = model.parts()
    return [
        {"params": list(matrices.items()), "algorithm": "muon", "lr": 0.02},
        {"params": list(rest.items()), "algorithm": "adamw", "lr": 3e-3, "weight_decay": 0.05},
    ]


def as_default(model: Block, index: int) -> list[dict[str, Any]]:
    """The groups, of which one names nothing and takes what the constructor has."""
    groups = groups_of(model)
    groups[index] = {"params": groups[index]["params"]}
    return groups


class Twins:
    """One model with our optimizer, and its copy with one torch optimizer for each algorithm."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.ours, self.theirs = Block(), Block()
        self.optimizer = make(self.ours)
        matrices, rest = self.theirs.parts()
        self.muon = torch.optim.Muon(list(matrices.items()), lr=0.02)
        self.adamw = torch.optim.AdamW(list(rest.items()), lr=3e-3, weight_decay=0.05)
        self.beside = (self.muon, self.adamw)

    def backward(self, step: int) -> None:
        for model in (self.ours, self.theirs):
            model.zero_grad()
            loss_of(model, step).backward()

    def step(self, step: int) -> None:
        self.backward(step)
        self.optimizer.step()
        for optimizer in self.beside:
            optimizer.step()

    def compare(self) -> None:
        """Compares the weights, and gives torch's matrices ours: Muon's rounding must not reach AdamW's gradients."""
        with torch.no_grad():
            for ours, theirs in zip(self.ours.parts()[0].values(), self.theirs.parts()[0].values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=MUON)
                theirs.copy_(ours)
        for name, theirs in self.theirs.parts()[1].items():
            torch.testing.assert_close(self.ours.parts()[1][name], theirs, rtol=0, atol=EXACT, msg=name)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Of two state dicts: bit by bit."""
    assert one["param_groups"] == other["param_groups"]
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
