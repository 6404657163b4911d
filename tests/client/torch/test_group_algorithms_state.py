"""The state of groups with their own algorithms: torch's names, state dicts, checkpoints, a Trainer that resumes."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.torch.mixed import Block, Twins, assert_equal, groups_of, loss_of
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import LambdaLR

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import Trainer, TrainingArguments

RESUMED = """
import sys, torch, optd.torch
sys.path.insert(0, {root!r})
from tests.client.torch.mixed import Block, groups_of, loss_of
torch.set_num_threads(1)
saved = torch.load({file!r}, weights_only=True)
model = Block()
model.load_state_dict(saved["model"])
optimizer = optd.torch.Optimizer(groups_of(model), server={server!r}, job={job!r})
optimizer.load_state_dict(saved["optimizer"])
for step in range(3, 6):
    model.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()
torch.save({{"model": model.state_dict(), "optimizer": optimizer.state_dict()}}, {file!r})
"""


@pytest.mark.slow
def test_a_fresh_process_goes_on_from_a_state_dict(
    make_mixed: Callable[..., Any], server: LocalServer, job_names: Any, tmp_path: Path
) -> None:
    model, file = Block(), tmp_path / "saved.pt"
    optimizer = make_mixed(model)
    for step in range(6):
        model.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if step == 2:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    root = str(Path(__file__).parents[3])
    script = RESUMED.format(root=root, file=str(file), server=server.address, job=next(job_names))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    resumed = torch.load(file, weights_only=True)
    torch.testing.assert_close(resumed["model"], model.state_dict(), rtol=0, atol=0)
    assert_equal(resumed["optimizer"], optimizer.state_dict())
    names = [set(state) for state in resumed["optimizer"]["state"].values()]
    assert names.count({"momentum_buffer"}) == len(model.parts()[0])
    assert names.count({"step", "exp_avg", "exp_avg_sq"}) == len(model.parts()[1])


def test_state_dicts_of_two_optimizers_of_torch_become_one(make_mixed: Callable[..., Any]) -> None:
    twins = Twins(make_mixed)
    for step in range(2):
        twins.step(step)
        twins.compare()
    states = [optimizer.state_dict() for optimizer in twins.beside]
    shift = len(states[0]["param_groups"][0]["params"])
    second = states[1]["param_groups"][0]
    joined = {
        "state": states[0]["state"] | {shift + index: state for index, state in states[1]["state"].items()},
        "param_groups": [
            states[0]["param_groups"][0],
            {**second, "params": [shift + index for index in second["params"]]},
        ],
    }
    twins.optimizer.load_state_dict(copy.deepcopy(joined))
    assert [group["algorithm"] for group in twins.optimizer.param_groups] == ["muon", "adamw"]
    for step in range(2, 4):
        twins.step(step)
        twins.compare()


def test_a_state_dict_of_other_algorithms_is_refused(make_mixed: Callable[..., Any]) -> None:
    optimizer = make_mixed(Block())
    before = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(before)
    other["param_groups"][0]["algorithm"] = "sgd"
    with pytest.raises(errors.InvalidRequest, match="group 'group0' has the algorithm 'muon'.* got 'sgd'"):
        optimizer.load_state_dict(other)
    assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize("flattened", [False, True], ids=["nested", "flattened"])
def test_torchs_distributed_checkpoint(make_mixed: Callable[..., Any], flattened: bool) -> None:
    how = StateDictOptions(flatten_optimizer_state_dict=flattened)
    model, fresh = Block(), Block()
    optimizer = make_mixed(model)
    for step in range(2):
        model.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    model.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=how))
    names = {name.removeprefix("state.").rpartition(".")[0] for name in saved} if flattened else {*saved["state"]}
    assert names >= set(dict(model.named_parameters()))
    fresh.load_state_dict(model.state_dict())
    other = make_mixed(fresh)
    set_optimizer_state_dict(fresh, other, copy.deepcopy(saved), options=how)
    for each, trained in ((optimizer, model), (other, fresh)):
        loss_of(trained, 5).backward()
        each.step()
    torch.testing.assert_close(fresh.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_state_is_read_and_assigned_by_parameter(make_mixed: Callable[..., Any]) -> None:
    model = Block()
    optimizer = make_mixed(model)
    loss_of(model, 0).backward()
    optimizer.step()
    matrix, vector = (next(iter(part.values())) for part in model.parts())
    optimizer.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
    optimizer.state[vector] = {**optimizer.state[vector], "step": torch.tensor(7.0)}
    assert not optimizer.state[matrix]["momentum_buffer"].any()
    assert optimizer.state[vector]["step"] == 7
    with pytest.raises(errors.InvalidRequest, match="of muon keeps no exp_avg"):
        optimizer.state[matrix]["exp_avg"] = torch.zeros_like(matrix)


@pytest.mark.slow
def test_a_trainer_of_hugging_face_resumes(where: dict[str, str], tmp_path: Path) -> None:
    steps, saved = 6, 3

    def train(job: str, resume: str | None = None) -> nn.Module:
        torch.manual_seed(0)
        model = ForTrainer()
        optimizer = optd.torch.Optimizer(groups_of(model.model), **{**where, "job": job})
        arguments = TrainingArguments(
            output_dir=str(tmp_path / where["job"]),
            max_steps=steps,
            save_steps=saved,
            per_device_train_batch_size=2,
            lr_scheduler_type="linear",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        tokens = torch.randint(0, 11, (2 * steps, 6), generator=torch.Generator().manual_seed(1))
        scheduler = LambdaLR(optimizer, [lambda step: 0.9**step, lambda step: 1 / (1 + step)])
        data = [{"tokens": row} for row in tokens]
        Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler)).train(resume)
        assert optimizer.session.info().version.version == (steps - saved if resume else steps)
        optimizer.close()
        return model

    whole = train(where["job"])
    resumed = train(where["job"] + "-2", str(tmp_path / where["job"] / f"checkpoint-{saved}"))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


class ForTrainer(nn.Module):
    """The model with its loss, as a Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Block()

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(tokens[:, :-1])
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()), "logits": logits}


@pytest.mark.parametrize("default", ["muon", "sparse_adam"])
def test_a_default_by_name_has_the_state_of_torchs_class(serve: Callable[..., Any], default: str) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = serve(optd.torch.Optimizer, default, [{"params": [first]}, {"params": [second], "algorithm": "sgd"}])
    gradient = torch.ones(2, 2)
    first.grad, second.grad = gradient.to_sparse(1) if default == "sparse_adam" else gradient, gradient
    optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert list(state) == {"muon": ["momentum_buffer"], "sparse_adam": ["step", "exp_avg", "exp_avg_sq"]}[default]
    assert type(state.get("step", 1)) is int


def test_an_entry_without_a_name_names_no_algorithm(serve: Callable[..., Any]) -> None:
    optimizer = serve(optd.torch.AdamW, [{"params": [nn.Parameter(torch.ones(2))], "algorithm": None}])
    optimizer.step()
    assert [group.options.algorithm for group in optimizer.session.groups()] == ["adamw"]
