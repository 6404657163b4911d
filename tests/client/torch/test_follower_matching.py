"""Which parameters of a job a `Follower` puts where: names, shapes, dtypes, buffers, averages."""

import threading

import pytest
import torch
from faults.processes import wait_for
from tests.client.torch.followed import NAMES, NOTHING, Telling, Trainer, trainer, where
from tests.client.torch.normalised import backward, loss_of, model_of

import optd
import optd.torch
from optd import errors
from optd.torch import Follower

SECONDS = 30.0
__all__ = ["trainer", "where"]

# What it follows


def test_buffers_follow_with_the_parameters(where):
    trained, model = model_of(0), model_of(1)
    optimizer = optd.torch.SGD(trained.parameters(), lr=0.01, buffers=trained, **where, worker="w")
    with optimizer.session, Follower(model, **where) as follower:
        for seed in range(3):
            backward(trained, seed)
            optimizer.step()
        follower.wait(3)
        assert loss_of(model) == loss_of(trained)
        for (name, own), (_, other) in zip(model.state_dict().items(), trained.state_dict().items(), strict=True):
            assert torch.equal(own, other), name
        assert model[1].num_batches_tracked.dtype is torch.int64


def test_a_job_without_buffers_is_told_of(where, caplog):
    trained, model = model_of(0), model_of(1)
    optimizer = optd.torch.SGD(trained.parameters(), lr=0.01, **where, worker="w")
    with optimizer.session, Follower(model, **where):
        assert "1.running_mean" in caplog.text
        assert "buffers=" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cast_rounds_to_the_dtype_of_the_model(where, trainer, dtype):
    with pytest.raises(errors.DtypeMismatch, match="float32, as the job has it, or cast=True"):
        Follower(Telling(dtype), **where)
    model = Telling(dtype)
    with Follower(model, **where, cast=True) as follower:
        trainer.steps()
        follower.wait(1)
        assert model.first.dtype is dtype
        assert model(NOTHING).item() == 1


def test_a_job_of_bfloat16_and_one_of_complex_numbers(where, server, job_names):
    for dtype in (torch.bfloat16, torch.complex64):
        place = {"server": server.address, "job": next(job_names)}
        trained, model = (torch.nn.Linear(2, 2).to(dtype) for _ in range(2))
        optimizer = optd.torch.SGD(trained.parameters(), lr=0.5, **place, worker="w")
        with optimizer.session, Follower(model, **place) as follower:
            for parameter in trained.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            follower.wait(1)
            assert torch.equal(model.weight, trained.weight)
            assert torch.equal(model.bias, trained.bias)


def test_encodings_and_averages(where):
    with optd.connect(where["server"], job=where["job"], worker="w", averages=optd.EMA(0.5)) as session:
        trainer = Trainer(session)
        trainer.steps(2)
        model, other = Telling(), Telling()
        with (
            Follower(model, **where, weights="ema") as average,
            Follower(other, **where, encoding="bfloat16") as rounded,
        ):
            assert model(NOTHING).item() == session.pull(weights="ema")["first"][0] != 2
            trainer.steps(257)
            assert (average.wait(259), rounded.wait(259)) == (259, 259)
            assert model(NOTHING).item() == session.pull(weights="ema")["first"][0]
            assert other(NOTHING).item() == 260, "259 is not a number of bfloat16"


def test_an_open_session_serves_too_and_stays_open(where, trainer):
    model = Telling()
    session = trainer.optimizer.session
    with Follower(model, session=session) as follower:
        trainer.steps()
        follower.wait(1)
    assert session.is_open
    assert model(NOTHING).item() == 1


# Names, shapes, and what else differs


@pytest.mark.parametrize(
    ("served", "names"),
    [
        (NAMES, None),
        (("param0", "param1", "param2"), None),
        (tuple(f"actor.{name}" for name in NAMES), lambda name: f"actor.{name}"),
        (("first", "w", "b"), {"second.weight": "w", "second.bias": "b"}),
    ],
    ids=["same", "without names", "function", "dict"],
)
def test_names_are_matched(where, served, names):
    with optd.connect(where["server"], job=where["job"], worker="w") as session:
        trainer = Trainer(session, served)
        model = Telling()
        with Follower(model, **where, names=names) as follower:
            trainer.steps()
            follower.wait(1)
            assert model(NOTHING).item() == 1


class Larger(Telling):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(2, 2)


class Other(Telling):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(5, 1))


@pytest.mark.parametrize(
    ("model", "how", "error", "message"),
    [
        (Larger, {}, errors.StructureMismatch, "none named 'head.weight', 'head.bias'; names= translates"),
        (
            torch.nn.ReLU,
            {},
            errors.StructureMismatch,
            "'second.weight', 'second.bias', which the model has not",
        ),
        (lambda: torch.nn.Linear(1, 1), {"strict": False}, errors.StructureMismatch, "none named 'weight', 'bias'"),
        (Other, {}, errors.ShapeMismatch, r"model's 'first'.* must have shape \(5,\), got \(5, 1\)"),
        (Telling, {"names": lambda name: "first"}, errors.StructureMismatch, "'first' twice"),
        (Telling, {"weights": "ema"}, errors.UnknownAverage, "ema"),
        (Telling, {"interval": -1}, errors.InvalidRequest, "interval must be at least 0"),
        (Telling, {"encoding": "zip"}, errors.UnknownEncoding, "zip"),
        (lambda: Telling().to("meta"), {}, errors.NotAnArray, "meta"),
    ],
)
def test_what_differs_is_refused_and_changes_nothing(where, trainer, model, how, error, message):
    made = model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(error, match=message):
        Follower(made, **where, **how)
    assert not made._forward_pre_hooks
    for name, value in made.state_dict().items():
        assert value.is_meta or torch.equal(value, before[name])
    wait_for(lambda: not any(thread.name == "optd-follower" for thread in threading.enumerate()), "no thread")


def test_without_strict_the_others_stay_as_they_are(where, trainer):
    model = Larger()
    head = model.head.weight.detach().clone()
    with Follower(model, **where, names={"second.bias": "nowhere"}, strict=False) as follower:
        trainer.steps()
        follower.wait(1)
        assert set(model.first.tolist()) == {1.0}
        assert torch.equal(model.head.weight, head)


def test_arguments_that_contradict_each_other_are_refused(where, trainer, monkeypatch):
    session = trainer.optimizer.session
    with pytest.raises(errors.InvalidRequest, match="server=, job= must be given to optd.connect"):
        Follower(Telling(), session=session, **where)
    monkeypatch.delenv("OPTD_JOB", raising=False)
    with pytest.raises(errors.InvalidRequest, match="pass job= or set OPTD_JOB"):
        Follower(Telling(), server=where["server"])
    with pytest.raises(errors.UnknownJob, match="nowhere"):
        Follower(Telling(), server=where["server"], job="nowhere")
