"""Buffers that travel with a job: what workers, evaluators and late joiners have of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.client.torch.normalised import assert_close, backward, both, buffers_of, loss_of, model_of, same

import optd
import optd.torch
from optd.errors import JobMismatch


def test_training_gives_what_it_gives_in_torch(serve):
    model, twin = model_of(), model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, momentum=0.9, clip_norm=1.0, buffers=model)
    reference = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        for each in (model, twin):
            backward(each, step)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        reference.step()
    assert_close(model, twin)
    assert model[1].num_batches_tracked.item() == 5


def test_an_evaluator_has_the_loss_of_the_trainer(serve):
    model = model_of()
    optimizer = serve(optd.torch.Adam, model.parameters(), lr=1e-2, buffers=model, job="evaluated")
    for step in range(20):
        backward(model, step)
        optimizer.step()
    other = model_of(1)
    evaluator = serve(optd.torch.Adam, other.parameters(), lr=1e-2, buffers=other, job="evaluated", worker="e")
    assert loss_of(other) == loss_of(model)
    assert same(buffers_of(other), buffers_of(model))
    without = model_of(1)
    without.load_state_dict({**without.state_dict(), **dict(other.named_parameters())})
    assert loss_of(without) > 10 * loss_of(model)
    backward(model, 20)
    optimizer.step()
    assert loss_of(other) != loss_of(model)
    evaluator.pull()
    assert loss_of(other) == loss_of(model)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_a_round_leaves_the_mean_of_its_workers_buffers(server, job_names, lane, zero_copy):
    models, job = [model_of(0), model_of(0)], next(job_names)
    sessions = [
        optd.connect(server.address, job=job, worker=f"w{rank}", policy=optd.Sync(workers=2), lane=lane)
        for rank in range(2)
    ]
    optimizers = [
        optd.torch.SGD(model.parameters(), lr=0.1, buffers=model, session=session, zero_copy=zero_copy)
        for model, session in zip(models, sessions, strict=True)
    ]
    for step in range(4):
        for rank, model in enumerate(models):
            backward(model, 10 * rank + step)
        one, other = map(buffers_of, models)
        both(*(optimizer.step for optimizer in optimizers))
        expected = {name: ((one[name] + other[name]) * 0.5).to(one[name].dtype) for name in one}
        assert not same(one, other)
        for model in models:
            assert same(buffers_of(model), expected)
            assert model[1].num_batches_tracked.item() == step + 1
    for session in sessions:
        session.close()
    assert same(buffers_of(models[0]), expected)


def test_without_rounds_the_last_push_counts_and_a_late_worker_begins_with_it(serve, job_names):
    job, models = next(job_names), [model_of(0), model_of(1), model_of(2)]

    def join(rank):
        model = models[rank]
        return serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model, job=job, worker=f"w{rank}")

    first, second = join(0), join(1)
    for rank, optimizer in ((0, first), (1, second), (1, second)):
        backward(models[rank], rank)
        optimizer.step()
    last = buffers_of(models[1])
    third = join(2)
    assert same(buffers_of(models[2]), last)
    first.pull()
    assert same(buffers_of(models[0]), last)
    assert last["1.num_batches_tracked"].item() == 2
    assert third.version == 3


def test_param_groups_state_dicts_and_schedulers_do_not_see_the_group(serve, server):
    model, twin = model_of(), model_of()
    optimizer = serve(optd.torch.Adam, model.parameters(), lr=1e-2, buffers=model)
    reference = torch.optim.Adam(twin.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    backward(model, 0)
    backward(twin, 0)
    optimizer.step()
    reference.step()
    scheduler.step()
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["lr"] == 5e-3
    saved, expected = optimizer.state_dict(), reference.state_dict()
    assert saved["state"].keys() == expected["state"].keys()
    assert len(saved["param_groups"]) == 1
    assert len(optimizer.state) == len(reference.state)
    optimizer.load_state_dict(saved)
    backward(model, 1)
    optimizer.step()
    assert [group.options.group for group in optimizer.session.groups()] == ["buffers", "group0"]
    assert [group.options.algorithm for group in optimizer.session.groups()] == ["assign", "adam"]


def test_groups_may_be_added_and_have_options_that_buffers_lack(serve, job_names):
    model, job = model_of(), next(job_names)
    options = {"lr": 0.1, "clip_norm": 1.0, "lookahead_steps": 2, "lr_schedule": "cosine(steps=10)", "job": job}
    rules = [{"match": "*", "lookahead_alpha": 0.25}]
    optimizer = serve(optd.torch.SGD, [model[0].weight], rules=rules, buffers=model, **options)
    backward(model, 0)
    before = buffers_of(model)
    optimizer.add_param_group({"params": [model[0].bias], "lr": 0.5})
    assert same(buffers_of(model), before)
    optimizer.step()
    assert same(buffers_of(model), before)
    other = model_of(1)
    groups = [{"params": [other[0].weight]}, {"params": [other[0].bias], "lr": 0.5}]
    serve(optd.torch.SGD, groups, rules=rules, buffers=other, worker="w1", **options)
    assert torch.equal(other[0].bias, model[0].bias)
    assert same(buffers_of(other), before)


def test_a_wrapped_model_has_the_names_of_what_it_wraps(serve, job_names):
    job, model, other = next(job_names), model_of(), model_of(1)
    compiled = torch.compile(torch.nn.DataParallel(model), backend="eager")
    serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=compiled, job=job)
    serve(optd.torch.SGD, other.parameters(), lr=0.1, buffers=dict(other.named_buffers()), job=job, worker="w1")
    assert same(buffers_of(other), buffers_of(model))


def test_a_model_without_buffers_is_trained_as_without_the_argument(serve, job_names):
    job, model, other = next(job_names), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model, job=job)
    assert len(optimizer.session.groups()) == 1
    serve(optd.torch.SGD, other.parameters(), lr=0.1, job=job, worker="w1")


@pytest.mark.parametrize("creator", [True, False])
def test_workers_with_and_without_buffers_are_told_what_to_do(serve, job_names, creator):
    job, model, other = next(job_names), model_of(), model_of(1)
    serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model if creator else None, job=job)
    before = buffers_of(other)
    with pytest.raises(JobMismatch) as raised:
        serve(optd.torch.SGD, other.parameters(), lr=0.1, buffers=None if creator else other, job=job, worker="w1")
    expected = (
        "has 2 groups (buffers, group0), this registration has (group0), without the job's buffers: pass the "
        if creator
        else "has 1 groups (group0), this registration has (buffers, group0), with buffers, which the job lacks: leave "
    )
    assert expected in str(raised.value)
    assert same(buffers_of(other), before)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ranks_of_ddp_have_the_mean_of_their_buffers(server):
    script = Path(__file__).with_name("ddp_buffers_script.py")
    settings = {"OPTD_SERVER": server.address, "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads(line) for line in done.stdout.splitlines())
    assert one == other
    assert one["are_means"] == [True] * 3
    assert one["buffers"]["1.num_batches_tracked"] == 3
    assert one["groups"] == ["buffers", "group0"]


def test_groups_with_algorithms_of_their_own_beside_buffers(serve, job_names):
    job, model, other = next(job_names), model_of(), model_of(1)

    def groups_of(each):
        matrices = [parameter for parameter in each.parameters() if parameter.dim() == 2]
        rest = [parameter for parameter in each.parameters() if parameter.dim() < 2]
        return [{"params": matrices, "algorithm": "muon", "lr": 0.02}, {"params": rest, "algorithm": "adamw"}]

    optimizer = serve(optd.torch.Optimizer, groups_of(model), buffers=model, job=job)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    serve(optd.torch.Optimizer, groups_of(other), buffers=other, job=job, worker="e")
    assert loss_of(other) == loss_of(model)
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adamw"]
    assert len(optimizer.state) == 6
