"""Parameters of 16 bits: torch's numbers on float32 copies, state both ways, memory of either side."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.client.torch.classes import CASES, Case
from torch import nn

import optd.torch
from optd.torch.arrays import as_array, as_tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
DENSE = pytest.mark.parametrize("case", [case for case in CASES if not case.sparse and not case.needs_closure], ids=str)


def parameters(case: Case, dtype: torch.dtype) -> list[list[nn.Parameter]]:
    """Some of the case's of 16 bits, beside others of float32 in the same group."""
    return [
        [nn.Parameter(p.detach().to(dtype if place % 2 == 0 else torch.float32)) for place, p in enumerate(group)]
        for group in case.parameters()
    ]


def copies(groups: list[list[nn.Parameter]]) -> list[list[nn.Parameter]]:
    return [[nn.Parameter(tensor.detach().float().clone()) for tensor in group] for group in groups]


def flat(groups: list[list[nn.Parameter]]) -> list[nn.Parameter]:
    return [tensor for group in groups for tensor in group]


def give_gradients(ours: list[list[nn.Parameter]], theirs: list[list[nn.Parameter]]) -> None:
    for tensor, copy in zip(flat(ours), flat(theirs), strict=True):
        tensor.grad = torch.randn_like(tensor)
        copy.grad = tensor.grad.to(copy.dtype, copy=True)


@pytest.mark.slow
@DTYPES
@DENSE
@pytest.mark.parametrize("masters", [False, True], ids=["rounded", "masters"])
def test_every_class_gives_what_torchs_gives_on_float32_copies(
    serve: Callable[..., Any], case: Case, dtype: torch.dtype, masters: bool
) -> None:
    groups = parameters(case, dtype)
    theirs = copies(groups)
    options = {"master_weights": True} if masters else {}
    optimizer = serve(case.ours, [{"params": group} for group in groups], **case.defaults, **options)
    reference = case.theirs([{"params": group} for group in theirs], **case.defaults)
    for _ in range(3):
        give_gradients(groups, theirs)
        reference.step()
        optimizer.step()
        for tensor, copy in zip(flat(groups), flat(theirs), strict=True):
            unit = torch.finfo(tensor.dtype).eps * copy.detach().abs().max() if tensor.itemsize == 2 else 0
            slack = 1e-3 if case.name == "Muon" else 2e-6
            torch.testing.assert_close(tensor.float(), copy.detach(), rtol=0, atol=float(unit) + slack)
            if tensor.itemsize == 2 and not masters:
                copy.data.copy_(tensor.detach())
    states = optimizer.state_dict()["state"]
    expected = reference.state_dict()["state"]
    assert states.keys() >= expected.keys()
    for index, entries in expected.items():
        for name, value in entries.items():
            found = states[index][name]
            if isinstance(value, torch.Tensor):
                assert (found.dtype, found.shape) == (value.dtype, value.shape)
    narrow = [index for index, tensor in enumerate(flat(groups)) if tensor.itemsize == 2]
    assert [index for index, entries in states.items() if "master_weights" in entries] == (narrow if masters else [])


@DTYPES
@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("zero_copy", [False, True], ids=["copied", "zero-copy"])
def test_weights_of_16_bits_are_used_where_they_lie(
    serve: Callable[..., Any], server: Any, dtype: torch.dtype, lane: str, zero_copy: bool
) -> None:
    job = f"lies-{dtype}-{lane}-{zero_copy}"
    weight = nn.Parameter(torch.ones(3, 4, dtype=dtype))
    transposed = nn.Parameter(torch.ones(4, 3, dtype=dtype).t())
    with optd.connect(server.address, job=job, worker="w", lane=lane) as session:
        optimizer = optd.torch.SGD([weight, transposed], lr=0.5, session=session, zero_copy=zero_copy)
        for step in range(1, 5):
            optimizer.zero_grad()
            (weight.sum() + transposed.sum()).backward()
            optimizer.step()
            for tensor in (weight, transposed):
                assert tensor.dtype == dtype
                assert tensor.tolist() == [[1 - step / 2] * 4] * 3
        rows = optimizer.pull_rows("param0", [1])
        assert rows.dtype == dtype
        assert rows.tolist() == [[-1.0] * 4]
        assert optimizer.session.lane == lane


@DTYPES
def test_sparse_gradients_of_16_bits(serve: Callable[..., Any], dtype: torch.dtype) -> None:
    embedding = nn.Embedding(20, 3, sparse=True, dtype=dtype)
    before = embedding.weight.detach().clone()
    optimizer = serve(optd.torch.SGD, embedding.parameters(), lr=0.5)
    embedding(torch.tensor([4, 9, 4])).sum().backward()
    optimizer.step()
    expected = before.float()
    expected[4] -= 1
    expected[9] -= 0.5
    assert torch.equal(embedding.weight.detach(), expected.to(dtype))


@DTYPES
def test_state_is_float32_and_loads_both_ways(serve: Callable[..., Any], dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(5, dtype=dtype))
    weight.grad = torch.linspace(0.1, 1, 5).to(dtype)
    optimizer = serve(optd.torch.Adam, [weight], master_weights=True)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"][0]["exp_avg"].dtype == saved["state"][0]["master_weights"].dtype == torch.float32

    # Ours to ours: no bit is lost, although torch's own way of loading rounds.
    other = nn.Parameter(weight.detach().clone())
    second = serve(optd.torch.Adam, [other], master_weights=True)
    second.load_state_dict(saved)
    for name, value in second.state_dict()["state"][0].items():
        assert torch.equal(value, saved["state"][0][name])

    # Ours to torch's class, which rounds, and back.
    saved["state"][0].pop("master_weights")
    theirs = torch.optim.Adam([nn.Parameter(weight.detach().clone())])
    theirs.load_state_dict({**saved, "param_groups": theirs.state_dict()["param_groups"]})
    narrow = theirs.state_dict()
    assert narrow["state"][0]["exp_avg"].dtype == dtype
    second.load_state_dict(narrow)
    loaded = second.state_dict()["state"][0]
    assert torch.equal(loaded["exp_avg"], narrow["state"][0]["exp_avg"].float())
    assert "master_weights" not in loaded


def test_what_a_hook_makes_of_loaded_state_counts(serve: Callable[..., Any]) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float16))
    weight.grad = torch.full((2,), 0.1, dtype=torch.float16)
    optimizer = serve(optd.torch.SGD, [weight], lr=0.1, momentum=0.9)
    optimizer.step()
    saved = optimizer.state_dict()

    def double(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        states = {key: {"momentum_buffer": 2 * entry["momentum_buffer"]} for key, entry in given["state"].items()}
        return {**given, "state": states}

    def ten(changed: Any) -> None:
        for state in changed.state.values():
            state["momentum_buffer"] = torch.full_like(state["momentum_buffer"], 10)

    optimizer.register_load_state_dict_pre_hook(double)
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], 2 * saved["state"][0]["momentum_buffer"])
    optimizer.register_load_state_dict_post_hook(ten)
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].tolist() == [10, 10]


def test_a_network_in_bfloat16_learns_and_a_worker_attaches(serve: Callable[..., Any]) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(torch.bfloat16)

    inputs = torch.randn(64, 4, dtype=torch.bfloat16)
    wanted = inputs.sum(1, keepdim=True)
    model = network()
    optimizer = serve(optd.torch.AdamW, model.named_parameters(), lr=0.02, master_weights=True, job="brain")
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    again = network()
    serve(optd.torch.AdamW, again.named_parameters(), lr=0.02, master_weights=True, job="brain", worker="w1")
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_tensors_and_arrays_of_bfloat16_have_one_memory(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=torch.bfloat16)
    array = as_array(tensor)
    assert (array.dtype, array.shape) == (np.dtype(ml_dtypes.bfloat16), shape)
    array[...] = 2.5
    assert (tensor == 2.5).all()
    as_tensor(array).fill_(-1)
    assert (tensor == -1).all()
    assert as_array(torch.zeros(2, 3, dtype=torch.bfloat16).t()).shape == (3, 2)
    assert as_array(torch.nn.Parameter(tensor)).dtype == ml_dtypes.bfloat16
