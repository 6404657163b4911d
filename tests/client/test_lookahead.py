"""Lookahead through a server: in both faces, by rules, of rows, over a checkpoint, and set in mid-training."""

from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd.local import LocalServer
from optd_wire import errors


def gradients(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}


class Loop:
    """Lookahead as people write it around an optimizer of torch's."""

    def __init__(self, arrays: dict[str, np.ndarray], every: dict[str, int], alpha: float) -> None:
        self.parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in arrays.items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.05)
        self.slow = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.every, self.alpha, self.steps = every, alpha, 0

    def step(self, given: dict[str, np.ndarray]) -> None:
        for name, gradient in given.items():
            self.parameters[name].grad = torch.from_numpy(gradient)
        self.optimizer.step()
        self.steps += 1
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.steps % self.every.get(name, self.steps + 1) == 0:
                    self.slow[name] += self.alpha * (parameter - self.slow[name])
                    parameter.copy_(self.slow[name])

    def check(self, arrays: dict[str, np.ndarray]) -> None:
        for name, parameter in self.parameters.items():
            np.testing.assert_allclose(arrays[name], parameter.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_both_faces_follow_a_plain_loop(server: LocalServer, name: str) -> None:
    arrays = gradients(99)
    loop = Loop(arrays, {"w": 3, "b": 3}, 0.5)
    tensors = [(key, torch.nn.Parameter(torch.from_numpy(array.copy()))) for key, array in arrays.items()]
    with optd.connect(server.address, job=name) as one, optd.connect(server.address, job=f"{name}-torch") as two:
        numpys = optd.AdamW(arrays, lr=0.05, lookahead_steps=3, session=one)
        torchs = optd.torch.AdamW(tensors, lr=0.05, lookahead_steps=3, session=two)
        for seed in range(10):
            loop.step(gradients(seed))
            numpys.step(gradients(seed))
            for (_, tensor), gradient in zip(tensors, gradients(seed).values(), strict=True):
                tensor.grad = torch.from_numpy(gradient)
            torchs.step()
            loop.check(arrays)
            loop.check({key: tensor.detach().numpy() for key, tensor in tensors})


def test_a_rule_has_some_parameters_look_ahead(server: LocalServer, name: str) -> None:
    arrays = gradients(99)
    loop = Loop(arrays, {"b": 2}, 0.25)
    rules = [{"match": "b", "lookahead_steps": 2, "lookahead_alpha": 0.25}]
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.AdamW(arrays, lr=0.05, rules=rules, session=session)
        for seed in range(5):
            loop.step(gradients(seed))
            optimizer.step(gradients(seed))
        loop.check(arrays)


def test_a_checkpoint_goes_on_where_it_was(server: LocalServer, name: str) -> None:
    arrays = gradients(99)
    with optd.connect(server.address, job=name) as one, optd.connect(server.address, job=f"{name}-resumed") as two:
        first = optd.AdamW(arrays, lr=0.05, lookahead_steps=4, session=one)
        for seed in range(6):
            first.step(gradients(seed))
        saved = first.state_dict()
        assert saved["state"][0]["slow_weights"].shape == (4, 3)
        others = {key: array.copy() for key, array in arrays.items()}
        second = optd.AdamW(others, lr=0.1, session=two)
        second.load_state_dict(saved)
        for seed in range(6, 10):
            first.step(gradients(seed))
            second.step(gradients(seed))
        for key, array in arrays.items():
            np.testing.assert_array_equal(others[key], array)


def test_rows_and_what_comes_back_with_them(server: LocalServer, name: str) -> None:
    """A table that is large enough for steps that cost what their rows cost."""
    table, alone = np.ones((30_000, 4)), np.ones((30_000, 4))
    slow, rng = table.copy(), np.random.default_rng(0)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"t": table}, lr=0.5, lookahead_steps=3, session=session)
        for step in range(1, 8):
            ids = rng.choice(len(table), 20, replace=False)
            rows = rng.standard_normal((20, 4))
            optimizer.step({"t": (ids, rows)})
            alone[ids] -= 0.5 * rows
            if step % 3 == 0:
                slow += 0.5 * (alone - slow)
                alone[...] = slow
            np.testing.assert_array_equal(table, alone)
            np.testing.assert_array_equal(session.pull()["t"], table)


def test_it_is_turned_on_in_mid_training(server: LocalServer, name: str) -> None:
    arrays = {"w": np.array([10.0])}
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD(arrays, lr=1.0, session=session)
        seen = []
        for step in range(4):
            if step == 1:
                optimizer.param_groups[0]["lookahead_steps"] = 2
            optimizer.step({"w": np.ones(1)})
            seen.append(float(arrays["w"][0]))
        # From 9 on; of the steps of the parameter it is the second and the fourth that return.
        assert seen == [9.0, 8.5, 7.5, 7.5]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lookahead_steps": 0}, "sgd: lookahead_steps must be in [1, inf), got 0"),
        ({"lookahead_steps": 1.5}, "sgd: lookahead_steps must be a whole number, got 1.5"),
        ({"lookahead_alpha": 0.0}, "sgd: lookahead_alpha must be in (0, 1], got 0"),
        ({"lookahead_alpha": 1.5}, "sgd: lookahead_alpha must be in (0, 1], got 1.5"),
    ],
)
def test_what_is_wrong_is_said(server: LocalServer, name: str, given: dict[str, Any], says: str) -> None:
    with optd.connect(server.address, job=name) as session, pytest.raises(errors.InvalidArgument) as caught:
        optd.SGD({"w": np.ones(1)}, **given, session=session)
    assert str(caught.value) == says


@pytest.mark.parametrize("cls", ["SGD", "Lion", "Adam"])
def test_a_loaded_state_says_when_they_return(server: LocalServer, name: str, cls: str) -> None:
    """Also for classes of torch that keep no count."""
    runs = []
    for load_at in (None, 6):
        tensor = torch.nn.Parameter(torch.zeros(2))
        tensor.grad = torch.ones(2)
        with optd.connect(server.address, job=f"{name}-{load_at}") as session:
            optimizer = getattr(optd.torch, cls)([tensor], lr=1.0, lookahead_steps=4, session=session)
            run = []
            for count in range(10):
                if count == load_at:
                    optimizer.load_state_dict(optimizer.state_dict())
                optimizer.step()
                run.append(tensor.tolist())
        runs.append(run)
    assert runs[0] == runs[1]
