"""`zero_copy=True`: weights and gradients in memory shared with the server, and everything else as ever."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import optd
import optd.torch
from optd.errors import DeadlineExceeded, DtypeMismatch, NonfiniteGradient
from optd.local import LocalServer
from optd.torch import SGD, Adam
from optd.torch.tensors import is_in_place

ALGORITHMS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"betas": (0.8, 0.95)},
}


class Model(nn.Module):
    """With a parameter that has no gradient in every third step, and one that has none ever."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(5, 7)
        self.extra = nn.Linear(7, 7, bias=False)
        self.head = nn.Linear(7, 3)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, inputs: torch.Tensor, *, short: bool = False) -> torch.Tensor:
        hidden = torch.tanh(self.base(inputs))
        return self.head(hidden if short else hidden + self.extra(hidden))


def twins() -> tuple[Model, Model]:
    model = Model()
    return model, copy.deepcopy(model)


@pytest.fixture
def connect(where: dict[str, str]) -> Iterator[Callable[..., optd.Session]]:
    """Opens sessions with one job, on lane shm unless told otherwise."""
    opened: list[optd.Session] = []

    def call(worker: str = "w0", lane: str = "shm", **how: object) -> optd.Session:
        opened.append(optd.connect(where["server"], job=where["job"], worker=worker, lane=lane, **how))
        return opened[-1]

    yield call
    for session in opened:
        session.close()


def equal(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-5, atol=1e-6)


def in_place(optimizer: SGD) -> list[bool]:
    """For each parameter whether its gradient lies where the server reads it."""
    places = optimizer._exchange.shared_gradients.places()
    return [
        tensor.grad is not None and is_in_place(tensor.grad, place)
        for group, row in zip(optimizer._exchange.groups, places, strict=True)
        for tensor, place in zip(group.tensors, row, strict=True)
    ]


def is_the_jobs(model: nn.Module, session: optd.Session) -> None:
    held = session.pull()
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), held[name])


# As in torch


@pytest.mark.parametrize("lane", ["shm", "grpc"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_trains_as_torch_does(name: str, lane: str, connect: Callable) -> None:
    """Over accumulated batches, with clipping, a scheduler, and parameters without gradients."""
    ours, theirs = twins()
    session = connect(lane=lane)
    made = [
        (
            ours,
            getattr(optd.torch, name)(ours.parameters(), lr=0.05, session=session, zero_copy=True, **ALGORITHMS[name]),
        ),
        (theirs, getattr(torch.optim, name)(theirs.parameters(), lr=0.05, **ALGORITHMS[name])),
    ]
    schedulers = [StepLR(optimizer, 5, 0.5) for _, optimizer in made]
    for step in range(20):
        batches = torch.randn(2, 6, 5)
        for model, optimizer in made:
            optimizer.zero_grad(set_to_none=step % 4 != 3)
            for batch in batches:
                model(batch, short=step % 3 == 2).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        equal(ours, theirs)
    assert session.lane == lane
    counts = [int(s["step"]) for s in made[1][1].state_dict()["state"].values()] if name != "SGD" else None
    if counts:
        assert [int(s["step"]) for s in made[0][1].state_dict()["state"].values()] == counts


def test_steps_go_back_and_forth_between_few_places(connect: Callable) -> None:
    model = Model()
    optimizer = SGD(model.named_parameters(), session=connect(), zero_copy=True)
    seen = set()
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.ones(2, 5)).sum().backward()
        assert in_place(optimizer) == [False, *[True] * 5]
        optimizer.step()
        seen.add(model.base.weight.data_ptr())
    assert 1 < len(seen) <= 4


def test_gradients_are_where_the_server_reads_them_and_none_is_none(connect: Callable) -> None:
    model = Model()
    optimizer = SGD(model.parameters(), lr=1.0, session=connect(), zero_copy=True)
    model(torch.ones(1, 5), short=True).sum().backward()
    names = [name for name, _ in model.named_parameters()]
    there = dict(zip(names, in_place(optimizer), strict=True))
    assert there == {name: not name.startswith(("extra", "unused")) for name in names}
    assert model.extra.weight.grad is None
    optimizer.step()
    assert {group.min_steps for group in optimizer.session.groups()} == {0}
    held = model.base.weight.grad
    optimizer.zero_grad(set_to_none=False)
    assert model.base.weight.grad is held
    assert held.count_nonzero() == 0
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    version, weights = optimizer.version, copy.deepcopy(model)
    optimizer.step()
    assert optimizer.version == version + 1
    equal(model, weights)


def test_a_closure_and_a_scaler(connect: Callable) -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    made = [
        (ours, SGD(ours.parameters(), lr=0.1, session=connect(), zero_copy=True)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1)),
    ]
    inputs = torch.randn(4, 3)
    for model, optimizer in made:

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        scaler = torch.amp.GradScaler("cpu")
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    equal(ours, theirs)


def test_groups_in_mid_training_and_two_models(connect: Callable, serve: Callable) -> None:
    ours, theirs = twins()
    other = nn.Linear(5, 1)
    second = serve(SGD, other.parameters(), lr=0.1, zero_copy=True)
    optimizer = Adam(ours.base.parameters(), lr=0.1, session=connect(), zero_copy=True)
    reference = torch.optim.Adam(theirs.base.parameters(), lr=0.1)

    def train() -> None:
        for _ in range(3):
            inputs = torch.randn(4, 5)
            for model, each in ((ours, optimizer), (theirs, reference)):
                each.zero_grad()
                model(inputs).square().sum().backward()
                each.step()
            second.zero_grad()
            other(inputs).sum().backward()
            second.step()
            equal(ours, theirs)

    train()
    for model, each in ((ours, optimizer), (theirs, reference)):
        each.add_param_group({"params": [*model.extra.parameters(), *model.head.parameters()], "lr": 0.01})
    train()
    assert optimizer.session.lane == "shm"
    assert in_place(optimizer) == [True] * 5
    state = copy.deepcopy(optimizer.state_dict())
    train()
    for each in (optimizer, reference):
        each.load_state_dict(state)
    train()


# Whatever is done to gradients


def test_gradients_that_are_put_elsewhere_are_found(connect: Callable) -> None:
    weights = [nn.Parameter(torch.zeros(3, 3)) for _ in range(6)]
    optimizer = SGD(weights, lr=1.0, session=connect(), zero_copy=True)
    sum(
        ((number + 1) * weight * torch.arange(9.0).view(3, 3)).sum() for number, weight in enumerate(weights)
    ).backward()
    assert in_place(optimizer) == [True] * 6
    first, second = weights[0].grad, weights[1].grad
    weights[0].grad, weights[1].grad = second, first  # the places of each other
    weights[2].grad = weights[2].grad.t()  # the own place, in other strides
    weights[3].grad = weights[3].grad.clone() * 2
    weights[4].grad = None
    weights[5].grad = torch.ones(()).expand(3, 3)
    expected = [-weight.grad.clone() if weight.grad is not None else torch.zeros(3, 3) for weight in weights]
    optimizer.step()
    for weight, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), wanted)


def test_a_gradient_that_has_a_graph_stays(connect: Callable) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SGD([weight], lr=0.5, session=connect(), zero_copy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight.square().sum().backward(create_graph=True)
    assert weight.grad.requires_grad
    optimizer.step()
    assert weight.tolist() == [0, 0, 0]


def test_a_refused_gradient_changes_nothing(connect: Callable) -> None:
    model = Model()
    optimizer = SGD(model.parameters(), lr=1.0, session=connect(), zero_copy=True)
    model(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(model)
    model.base.bias.grad[1] = float("nan")
    with pytest.raises(NonfiniteGradient):
        optimizer.step()
    equal(model, before)
    model.base.bias.grad[1] = 0
    optimizer.step()
    assert optimizer.session.info().version.version == 2


def test_a_push_whose_answer_is_late_counts_once_and_its_gradient_is_left_alone(
    connect: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = nn.Parameter(torch.zeros(4))
    session = connect()
    optimizer = SGD([weight], lr=1.0, session=session, zero_copy=True)
    (weight * torch.ones(4)).sum().backward()
    optimizer.step()
    place = optimizer._exchange.shared_gradients.places()[0][0].array
    real = session._transport.step

    def late(*args: object) -> None:
        real(*args)
        raise DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    monkeypatch.setattr(session._transport, "step", late)
    with pytest.raises(DeadlineExceeded):
        optimizer.step()
    monkeypatch.undo()
    weight.grad.mul_(3)  # no longer where the server may still read
    assert place.tolist() == [1, 1, 1, 1]
    optimizer.step()
    assert weight.tolist() == [-5] * 4
    optimizer.zero_grad()
    (weight * torch.ones(4)).sum().backward()
    assert in_place(optimizer) == [True]
    optimizer.step()
    assert weight.tolist() == [-6] * 4
    assert session.info().version.version == 4


# Whatever is done to weights


@pytest.mark.parametrize("how", ["data", "init", "load", "numpy"])
def test_changes_here_are_replaced_by_the_weights_of_the_job_where_that_is_wanted(how: str, connect: Callable) -> None:
    model = Model()
    session = connect()
    optimizer = SGD(model.named_parameters(), lr=0.1, session=session, zero_copy=True, local_changes="warn")
    for step in range(16):
        optimizer.zero_grad()
        model(torch.ones(2, 5)).square().sum().backward()
        changed = step in (3, 4, 5)
        if changed and how == "data":
            model.base.weight.data.add_(1)
        elif changed and how == "init":
            nn.init.zeros_(model.base.weight)
        elif changed and how == "load":
            model.load_state_dict(Model().state_dict())
        elif changed:
            model.base.weight.detach().numpy()[:] = 7
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        assert len(caught) == changed
        is_the_jobs(model, session)


def test_push_weights_and_pull(connect: Callable) -> None:
    model = Model()
    session = connect()
    optimizer = SGD(model.named_parameters(), session=session, zero_copy=True)
    optimizer.step()
    model.load_state_dict(Model().state_dict())
    mine = copy.deepcopy(model)
    optimizer.push_weights()
    equal(model, mine)
    is_the_jobs(model, session)
    for _ in range(6):
        nn.init.ones_(model.base.weight)
        optimizer.pull()
        equal(model, mine)


def test_a_backward_pass_through_the_old_weights_fails(connect: Callable) -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = SGD([weight], session=connect(), zero_copy=True)
    for _ in range(3):
        loss = weight.square().sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_what_does_not_fit_is_copied(connect: Callable) -> None:
    def every_layout() -> list[nn.Parameter]:
        torch.manual_seed(1)
        tensors = [
            torch.randn(()),
            torch.randn(0, 3),
            torch.randn(4, 3),
            torch.randn(3, 5).t(),
            torch.randn(6, 4)[::2],
            torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            torch.randn(3, dtype=torch.float64),
        ]
        return [nn.Parameter(tensor) for tensor in tensors]

    ours, theirs = every_layout(), every_layout()
    optimizer = Adam(ours, lr=0.1, session=connect(), zero_copy=True)
    reference = torch.optim.Adam(theirs, lr=0.1)
    strides = [parameter.stride() for parameter in ours]
    for number in range(5):
        for parameters, each in ((ours, optimizer), (theirs, reference)):
            each.zero_grad()
            sum((parameter * number).sin().sum() for parameter in parameters).backward()
            each.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert [parameter.stride() for parameter in ours] == strides


def test_a_parameter_that_is_frozen_and_thawed(connect: Callable) -> None:
    model = Model()
    model.head.requires_grad_(False)
    optimizer = SGD(model.named_parameters(), session=connect(), zero_copy=True)
    for _ in range(2):
        model(torch.ones(1, 5)).sum().backward()
        optimizer.step()
    model.head.requires_grad_(True)
    model(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    is_the_jobs(model, optimizer.session)


def test_a_model_that_changes_its_dtype_is_refused_as_without(connect: Callable) -> None:
    model = nn.Linear(2, 3)
    optimizer = SGD(model.named_parameters(), session=connect(), zero_copy=True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    model.double()
    with pytest.raises(DtypeMismatch, match="tensor of parameter 'weight' must have dtype float32, got float64"):
        optimizer.step()
    model.float()
    optimizer.step()
    is_the_jobs(model, optimizer.session)


def test_memory_that_is_shared_with_other_processes(connect: Callable) -> None:
    """`share_memory_` moves what a tensor lies in, and all that lies there."""
    model = Model()
    optimizer = SGD(model.named_parameters(), lr=0.1, session=connect(), zero_copy=True)
    for step in range(12):
        if step == 3:
            model.share_memory()
        optimizer.zero_grad()
        model(torch.ones(1, 5)).sum().backward()
        optimizer.step()
        is_the_jobs(model, optimizer.session)


def test_copies_of_a_model_are_its_own(connect: Callable) -> None:
    model = Model()
    optimizer = SGD(model.named_parameters(), lr=0.1, session=connect(), zero_copy=True)
    model(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    stream, whole = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), stream)
    torch.save(model, whole)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), Model()]
    copies[2].load_state_dict(torch.load(io.BytesIO(stream.getvalue())))
    copies.append(torch.load(io.BytesIO(whole.getvalue()), weights_only=False))
    assert len(stream.getvalue()) < 8000, "not the whole region with each parameter"
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(5):
        optimizer.step()
    for copied in copies:
        copied(torch.ones(1, 5)).sum().backward()
        for name, parameter in copied.named_parameters():
            assert torch.equal(parameter, before[name])


# Other workers, other processes, the end


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "forget"])
def test_weights_stay_when_the_session_has_ended(end: str, connect: Callable, where: dict[str, str]) -> None:
    model, other = twins()
    second = SGD(other.named_parameters(), lr=0.1, session=connect("w1"))
    held = {"session": optd.connect(where["server"], job=where["job"], worker="w0", lane="shm")}
    held["optimizer"] = SGD(model.named_parameters(), lr=0.1, session=held["session"], zero_copy=True)
    for _ in range(3):
        model(torch.ones(1, 5)).sum().backward()
        held["optimizer"].step()
    last = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if end == "close":
        held["session"].close()
    held.clear()
    gc.collect()
    while any(worker.active for worker in second.session.workers() if worker.name == "w0"):
        time.sleep(0.01)
    for _ in range(8):
        other(torch.ones(1, 5)).sum().backward()
        second.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, last[name])
    nn.init.zeros_(model.base.weight)
    model(torch.ones(1, 5)).sum().backward()  # and goes on without an optimizer


def test_weights_stay_between_calls_while_others_step(connect: Callable) -> None:
    model, other = twins()
    mine = SGD(model.named_parameters(), lr=0.1, session=connect(), zero_copy=True)
    second = SGD(other.named_parameters(), lr=0.1, session=connect("w1"), zero_copy=True)
    for _ in range(4):
        model(torch.ones(1, 5)).sum().backward()
        mine.step()
        last = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for _ in range(5):
            other(torch.ones(1, 5)).sum().backward()
            second.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, last[name])


FORKING = """
import os, sys
import numpy as np
import torch
from torch import nn
import optd
from optd.torch import SGD

torch.set_num_threads(1)
model = nn.Linear(5, 7)
session = optd.connect(sys.argv[1], job=sys.argv[2], lane="shm")
optimizer = SGD(model.named_parameters(), lr=0.1, session=session, zero_copy=True)
model(torch.ones(1, 5)).sum().backward()
optimizer.step()
before = model.weight.grad.clone()
address = model.weight.grad.data_ptr()
child = os.fork()
if child == 0:
    kept = torch.equal(model.weight.grad, before)
    model(torch.full((1, 5), 3.0)).sum().backward()
    model.zero_grad(set_to_none=False)
    nn.init.zeros_(model.weight)
    model.zero_grad()
    model(torch.ones(1, 5)).sum().backward()
    optimizer.close()
    os._exit(0 if kept else 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(model.weight.grad, before)
assert model.weight.grad.data_ptr() == address
optimizer.step()
np.testing.assert_array_equal(model.weight.detach().numpy(), session.pull()["weight"])
print("done")
"""


@pytest.mark.slow
def test_a_forked_child_leaves_the_gradients_of_its_parent_alone(where: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "forking.py"
    script.write_text(FORKING)
    command = [sys.executable, "-W", "error", str(script), where["server"], where["job"]]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("done\n", "", 0)


def test_a_model_outlives_its_optimizers(server: LocalServer, job_names: Iterator[str]) -> None:
    model = Model()
    for _ in range(3):
        with SGD(model.parameters(), server=server.address, job=next(job_names), zero_copy=True) as optimizer:
            model(torch.ones(1, 5)).sum().backward()
            optimizer.step()
    assert not model.base.weight._post_accumulate_grad_hooks, "nothing is left behind"


def test_many_workers_keep_their_weights_between_their_calls(connect: Callable) -> None:
    """Most get copies, because too few sets of weights are left; these must not lie where the server writes."""
    models = [Model() for _ in range(6)]
    optimizers = [
        SGD(model.parameters(), lr=1.0, session=connect(f"w{number}"), zero_copy=True)
        for number, model in enumerate(models)
    ]
    known: list[list[torch.Tensor]] = [[] for _ in models]
    for turn in range(30):
        number = (turn * 5) % 6 if turn % 3 else turn % 6
        for parameter in models[number].parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers[number].step()
        known[number] = [parameter.detach().clone() for parameter in models[number].parameters()]
        for model, weights in zip(models, known, strict=True):
            for parameter, before in zip(model.parameters(), weights, strict=False):
                assert torch.equal(parameter, before)


@pytest.mark.parametrize("lane", ["shm", "grpc"])
def test_pulls_of_what_is_new_and_of_some_parameters(lane: str, connect: Callable) -> None:
    ours, theirs = Model(), Model()
    session, other = connect("w0", lane), connect("w1", lane)
    optimizer = SGD(list(ours.named_parameters()), lr=1.0, session=session, zero_copy=True)
    optimizer.pull()
    assert not optimizer.pull(only_if_newer=True)
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    stepper = SGD(list(theirs.named_parameters()), lr=1.0, session=other)
    for parameter in theirs.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepper.step()
    with pytest.raises(optd.errors.UnknownParameter, match=r"'head\.wait'"):
        optimizer.pull(parameters=["head.wait"])
    assert optimizer.pull(parameters=["head.weight"])
    for name, parameter in ours.named_parameters():
        expected = before[name] - 1 if name == "head.weight" else before[name]
        torch.testing.assert_close(parameter.detach(), expected)
    assert optimizer.pull(only_if_newer=True)
    is_the_jobs(ours, session)
    assert not optimizer.pull(only_if_newer=True)
