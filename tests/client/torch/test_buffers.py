"""Buffers that travel with a job: what workers, evaluators and late joiners have of them."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd.errors import InvalidRequest, JobMismatch, NonfiniteGradient, NotAnArray, StructureMismatch
from optd.torch.arrays import as_array
from optd.torch.module_buffers import fetch

CLASSES = 3


def model_of(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6, momentum=0.5), torch.nn.ReLU(), torch.nn.Linear(6, CLASSES)
    )
    return model.to(dtype)


def batch_of(seed, dtype=torch.float64):
    """Inputs far from mean 0 and variance 1, so that statistics that have not been learnt are wildly wrong."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(32, 4, generator=generator, dtype=torch.float64) * 500 + 30_000
    return inputs.to(dtype), torch.randint(CLASSES, (32,), generator=generator)


def backward(model, seed):
    model.train()
    inputs, targets = batch_of(seed, next(model.parameters()).dtype)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()


def loss_of(model):
    model.eval()
    with torch.no_grad():
        inputs, targets = batch_of(99, next(model.parameters()).dtype)
        return torch.nn.functional.cross_entropy(model(inputs), targets).item()


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_close(model, twin):
    for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11, msg=name)


def both(*steps):
    """Runs the steps of the workers of a round, each of which waits for the others."""
    with ThreadPoolExecutor(len(steps)) as threads:
        for running in [threads.submit(step) for step in steps]:
            running.result(60)


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


def special():
    module = torch.nn.Module()
    module.register_buffer("large", torch.tensor([2**44, -(2**44) + 1, 12345678901]))
    module.register_buffer("small", torch.tensor([-128, 127], dtype=torch.int8))
    module.register_buffer("mask", torch.tensor([True, False, True]))
    module.register_buffer("zero", torch.tensor(7, dtype=torch.int32))
    module.register_buffer("brief", torch.tensor([1.5, -0.25], dtype=torch.bfloat16))
    module.register_buffer("narrow", torch.tensor([1.5, -0.25], dtype=torch.float16))
    module.register_buffer("waves", torch.tensor([1 + 2j, -3j]))
    module.register_buffer("infinite", torch.tensor([float("-inf"), 0.0]))
    module.register_buffer("strided", torch.arange(6.0).reshape(2, 3).t())
    module.register_buffer("none", None)
    module.register_buffer("empty", torch.empty(0))
    module.register_buffer("passing", torch.ones(2), persistent=False)
    module.weight = torch.nn.Parameter(torch.ones(2))
    module.register_buffer("again", module.zero)
    return module


def test_tensors_of_other_devices_are_fetched_together():
    tensors = [buffer for _, buffer in special().named_buffers()]
    for tensor, array in zip(tensors, fetch(tensors), strict=True):
        expected = as_array(tensor)
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)
    assert fetch([]) == []


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "topk:0.5"])
def test_buffers_of_all_dtypes_come_back_exactly_in_every_encoding(server, job_names, encoding):
    job, modules = next(job_names), [special(), special()]
    with (
        optd.connect(server.address, job=job, worker="w0", encoding=encoding, lane="grpc") as first,
        optd.connect(server.address, job=job, worker="w1", encoding=encoding, lane="grpc") as second,
    ):
        one = optd.torch.SGD(modules[0].parameters(), lr=0.1, buffers=modules[0], session=first)
        changed = {
            "large": torch.tensor([1, 2**44 - 1, -7]),
            "small": torch.tensor([5, -6], dtype=torch.int8),
            "mask": torch.tensor([False, False, True]),
            "brief": torch.tensor([3.140625, 2.0], dtype=torch.bfloat16),
            "waves": torch.tensor([0.1 + 0.2j, 0.3]),
            "strided": torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).t(),
        }
        for name, value in changed.items():
            getattr(modules[0], name).copy_(value)
        modules[0].passing.fill_(5)
        modules[0].weight.grad = torch.ones(2)
        expected = buffers_of(modules[0])
        one.step()
        assert same(buffers_of(modules[0]), expected)
        optd.torch.SGD(modules[1].parameters(), lr=0.1, buffers=modules[1], session=second)
        expected["passing"] = torch.ones(2)
        assert same(buffers_of(modules[1]), expected)
        parameters = first.info().groups[0].parameters
        assert "passing" not in {parameter.name for parameter in parameters}


def test_integers_that_differ_become_their_rounded_mean(server, job_names):
    modules, job = [special(), special()], next(job_names)
    sessions = [
        optd.connect(server.address, job=job, worker=f"w{rank}", policy=optd.Sync(workers=2)) for rank in range(2)
    ]
    optimizers = [
        optd.torch.SGD(module.parameters(), lr=0.1, buffers=module, session=session)
        for module, session in zip(modules, sessions, strict=True)
    ]
    modules[0].zero.fill_(3)
    modules[1].zero.fill_(8)
    for module in modules:
        module.weight.grad = torch.ones(2)
    modules[0].mask.fill_(True)
    both(*(optimizer.step for optimizer in optimizers))
    for module in modules:
        assert module.zero.item() == 6  # 5.5, to the even one
        assert module.mask.tolist() == [True, True, True]  # only one worker has changed it
    for session in sessions:
        session.close()


def test_frozen_buffers_are_not_sent_and_not_written_to(serve, monkeypatch):
    model = model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model)
    sent = []
    outgoing = optimizer._exchange.registration._outgoing
    source = outgoing.source
    monkeypatch.setattr(
        outgoing,
        "source",
        lambda gradients, *args, **kwargs: (sent.append(gradients[0]), source(gradients, *args, **kwargs))[1],
    )
    backward(model, 0)
    optimizer.step()
    model[1].eval()
    model.zero_grad()
    versions = [buffer._version for buffer in model.buffers()]
    inputs, targets = batch_of(1)
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert all(value is not None for value in sent[0])
    assert sent[1] == [None, None, None]
    assert versions == [buffer._version for buffer in model.buffers()]


def test_buffers_that_a_forward_pass_replaces_are_followed(serve, job_names):
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self):
            self.count = self.count + 1
            return self.weight.sum()

    model, job = Counting(), next(job_names)
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model, job=job)
    for _ in range(3):
        model().backward()
        optimizer.step()
    model._apply(lambda tensor: tensor.clone())
    other = Counting()
    serve(optd.torch.SGD, other.parameters(), lr=0.1, buffers=other, job=job, worker="w1")
    assert other.count.item() == model.count.item() == 3


@pytest.mark.parametrize("loads_model", ["before", "after"])
@pytest.mark.parametrize("lives", [True, False])
def test_a_model_that_is_loaded_beside_its_optimizer_keeps_its_buffers(serve, job_names, loads_model, lives):
    job, model = next(job_names), model_of()
    optimizer = serve(optd.torch.Adam, model.parameters(), lr=1e-2, buffers=model, job=job)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    saved = {"model": {k: v.clone() for k, v in model.state_dict().items()}, "optimizer": optimizer.state_dict()}
    if lives:
        for step in range(2):
            backward(model, step)
            optimizer.step()
    optimizer.close()
    other = model_of(7)
    if loads_model == "before":
        other.load_state_dict(saved["model"])
    resumed = serve(optd.torch.Adam, other.parameters(), lr=1e-2, buffers=other, job=job)
    if loads_model == "after":
        other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert same(other.state_dict(), saved["model"])
    third = model_of(8)
    serve(optd.torch.Adam, third.parameters(), lr=1e-2, buffers=third, job=job, worker="e")
    assert same(third.state_dict(), saved["model"])


def test_a_model_that_is_loaded_in_the_middle_counts_at_the_next_step(serve):
    model, twin = model_of(), model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model)
    reference = torch.optim.SGD(twin.parameters(), lr=0.1)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(4):
        for each in (model, twin):
            if step == 2:
                each.load_state_dict(saved)
            backward(each, step)
        optimizer.step()
        reference.step()
        assert_close(model, twin)


def test_push_weights_sends_them_and_pull_drops_changes(serve, job_names):
    job, model, other = next(job_names), model_of(), model_of(1)
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model, job=job)
    model[1].running_mean.fill_(5)
    optimizer.pull(groups="group0")
    assert model[1].running_mean.unique().item() == 5
    optimizer.pull()
    assert model[1].running_mean.unique().item() == 0
    model[1].running_mean.fill_(6)
    optimizer.push_weights()
    evaluator = serve(optd.torch.SGD, other.parameters(), lr=0.1, buffers=other, job=job, worker="e")
    assert other[1].running_mean.unique().item() == 6
    model[1].running_mean.fill_(7)
    optimizer.push_weights()
    evaluator.pull(groups="buffers")
    assert other[1].running_mean.unique().item() == 7


def test_accumulated_pushes_leave_the_mean_and_a_flush_brings_none(serve):
    model = model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model, gradients=optd.Gradients(accumulate=3))
    first = model[1].running_mean.clone()
    means = []
    for step in range(2):
        backward(model, step)
        means.append(model[1].running_mean.clone())
        optimizer.step()
        assert torch.equal(model[1].running_mean, first)
    optimizer.flush()
    assert torch.equal(model[1].running_mean, (means[0] + means[1]) * 0.5)


def test_an_average_of_the_weights_has_the_newest_buffers(serve):
    model = model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model, averages=optd.EMA(0.5))
    for step in range(3):
        backward(model, step)
        optimizer.step()
    buffers, weight = buffers_of(model), model[0].weight.clone()
    optimizer.pull(weights="ema")
    assert same(buffers_of(model), buffers)
    assert not torch.equal(model[0].weight, weight)


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
        "has 2 groups (buffers, group0), this registration has (group0), without the job's buffers: pass buffers=, "
        if creator
        else "has 1 groups (group0), this registration has (buffers, group0), with buffers, which the job lacks: leave "
    )
    assert expected in str(raised.value)
    assert same(buffers_of(other), before)


def test_what_no_server_can_hold_is_refused_before_there_is_a_job(serve):
    model = model_of()
    for wrong, message in (
        (5, "buffers must be a module, or a dict of tensors by name, got int"),
        ({"a": 5}, "buffer 'a' must be a tensor, got int"),
        ({"a": torch.zeros(2).expand(3, 2)}, "buffer 'a' must be a tensor whose elements do not share memory"),
        ({"a": torch.zeros(2, device="meta")}, "buffer 'a' must be a tensor that holds numbers"),
    ):
        with pytest.raises(NotAnArray) as raised:
            serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=wrong)
        assert message in str(raised.value)
    with pytest.raises(InvalidRequest, match=r"buffer 'a' holds the integer 17592186044417; .* up to a magnitude"):
        serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers={"a": torch.tensor([2**44 + 1])})
    with pytest.raises(InvalidRequest, match="buffers= is not for lbfgs, which takes one group"):
        serve(optd.torch.LBFGS, model.parameters(), buffers=model)


def test_a_buffer_of_another_shape_or_with_a_nan_stops_the_step(serve):
    model = model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model)
    backward(model, 0)
    model[1].running_var[2] = float("nan")
    with pytest.raises(NonfiniteGradient, match=r"'1.running_var'"):
        optimizer.step()
    model[1].running_var = torch.ones(7, dtype=torch.float64)
    with pytest.raises(StructureMismatch, match=r"buffer '1.running_var' must have float64 of shape \(6,\)"):
        optimizer.step()
    model[1].running_var = torch.ones(6, dtype=torch.float64)
    optimizer.step()


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


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_rows_and_half_precision_beside_buffers(serve, server, job_names, lane):
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(50_000, 4, sparse=True)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, ids):
            return self.norm(self.table(ids).to(torch.bfloat16)).square().sum()

    def made(seed):
        torch.manual_seed(seed)
        model = Words()
        model.norm.to(torch.bfloat16)
        return model, [{"params": [model.table.weight]}, {"params": [*model.norm.parameters()]}]

    job, (model, groups), (other, others) = next(job_names), made(0), made(1)
    with (
        optd.connect(server.address, job=job, worker="w0", lane=lane) as first,
        optd.connect(server.address, job=job, worker="w1", lane=lane) as second,
    ):
        optimizer = optd.torch.SGD(groups, lr=0.1, buffers=model, session=first)
        evaluator = optd.torch.SGD(others, lr=0.1, buffers=other, session=second)
        for step in range(3):
            optimizer.zero_grad()
            model(torch.tensor([step, 7, 300 * step + 5, 2])).backward()
            expected = buffers_of(model)
            optimizer.step()
            assert same(buffers_of(model), expected)
        evaluator.pull()
        assert same(dict(other.state_dict()), dict(model.state_dict()))
        assert model.norm.running_mean.dtype is torch.bfloat16


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


def test_a_call_that_fails_leaves_the_buffers_to_the_next_one(serve, monkeypatch):
    model = model_of()
    optimizer = serve(optd.torch.SGD, model.parameters(), lr=0.1, buffers=model)
    session = optimizer.session
    step = session.step
    backward(model, 0)
    expected = buffers_of(model)
    monkeypatch.setattr(session, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert same(buffers_of(model), expected)
    monkeypatch.setattr(session, "step", step)
    optimizer.step()
    assert same(buffers_of(model), expected)
    optimizer.pull()
    assert same(buffers_of(model), expected)
