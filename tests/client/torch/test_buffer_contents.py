"""What buffers may hold, how it travels, and what is refused."""

import numpy as np
import pytest
import torch
from tests.client.torch.normalised import backward, batch_of, both, buffers_of, model_of, same

import optd
import optd.torch
from optd.errors import InvalidRequest, NonfiniteGradient, NotAnArray, StructureMismatch
from optd.torch.arrays import as_array
from optd.torch.module_buffers import fetch


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
