"""Buffers that are loaded, pushed without a step, accumulated or averaged."""

import pytest
import torch
from tests.client.torch.normalised import assert_close, backward, buffers_of, model_of, same

import optd
import optd.torch


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
