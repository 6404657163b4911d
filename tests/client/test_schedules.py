"""Schedules on the server: one for all workers, seen in inspection, changed in mid-training, in both faces."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd import schedules
from optd.local import LocalServer
from optd_wire import errors

COSINE = schedules.Cosine(steps=20, end=0.1, warmup=4, warmup_start=0.25)


def factor(version: int) -> float:
    if version < 4:
        return 0.25 + 0.75 * version / 4
    share = min(version - 4, 20) / 20
    return 0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2


def test_asynchronous_workers_share_one_and_a_later_one_goes_on_with_it(server: LocalServer, name: str) -> None:
    expected, ones = np.zeros(3), np.ones(3)

    def attach(worker: str) -> tuple[optd.Session, optd.Optimizer, np.ndarray]:
        array = np.zeros(3)
        session = optd.connect(server.address, job=name, worker=worker)
        return session, optd.SGD({"w": array}, lr=0.5, lr_schedule=COSINE, session=session), array

    workers = [attach("w0"), attach("w1")]
    for version in range(12):
        if version == 8:
            for session, _, _ in workers:
                session.close()
            workers = [attach("late")] * 2
        _, optimizer, array = workers[version % 2]
        optimizer.step({"w": ones})
        expected -= 0.5 * factor(version)
        np.testing.assert_allclose(array, expected, rtol=1e-14)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["lr_schedule"] == str(COSINE)
    workers[0][0].close()


def optctl(server: LocalServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optd.ctl", *arguments]
    environment = {**os.environ, "OPTD_SERVER": server.address}
    environment.pop("COLUMNS", None)  # which parallel tests have: lines would be folded
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_person_sets_one_and_sees_what_it_makes_of_the_options(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        groups: list[dict[str, Any]] = [{"params": [np.zeros(2)], "lr": 1.0}, {"params": [np.zeros(2)], "lr": 2.0}]
        optimizer = optd.SGD(groups, momentum=0.8, session=session)
        optimizer.step([np.ones(2), np.ones(2)])
        assert "lr_schedule" not in optimizer.param_groups[0]
        done = optctl(
            server, "set", name, "group1", "lr_schedule=exponential(gamma=0.5)", "momentum_schedule=linear(4)"
        )
        assert done.stdout.splitlines() == [
            f"{name} group1: lr_schedule none -> exponential(gamma=0.5), since version 1",
            f"{name} group1: momentum_schedule none -> linear(4), since version 1",
        ]
        first, second = session.groups()
        assert first.effective == {}
        assert second.effective == {"lr": 1.0, "momentum": 0.8 * 0.75}
        shown = optctl(server, "groups", name).stdout.splitlines()
        assert shown[2].split()[6:9] == ["2", "now", "1"]
        assert "now         lr=1 momentum=0.6" in optctl(server, "group", name, "group1").stdout
        document = json.loads(optctl(server, "groups", name, "-o", "json").stdout)
        assert document[1]["effective"] == {"lr": 1.0, "momentum": 0.6000000000000001}
        optimizer.pull()
        assert optimizer.param_groups[1]["lr_schedule"] == "exponential(gamma=0.5)"
        assert optctl(server, "set", name, "group1", "lr_schedule=none").returncode == 0
        optimizer.pull()
        assert optimizer.param_groups[1]["lr_schedule"] is None
        assert session.groups()[1].effective == {"momentum": 0.8 * 0.75}


def test_lr_that_is_changed_meanwhile_is_what_the_schedule_acts_on(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        array = np.zeros(1)
        optimizer = optd.SGD({"w": array}, lr=1.0, session=session)
        optimizer.param_groups[0]["lr_schedule"] = schedules.Step(size=1, gamma=0.5)
        optimizer.step({"w": np.ones(1)})
        assert array[0] == -1.0
        optimizer.param_groups[0]["lr"] = 8.0
        optimizer.step({"w": np.ones(1)})
        assert array[0] == -5.0
        del optimizer.param_groups[0]["lr_schedule"]  # as if it had never been here: nothing changes on the server
        optimizer.step({"w": np.ones(1)})
        assert array[0] == -7.0
        optimizer.param_groups[0]["lr_schedule"] = None
        optimizer.step({"w": np.ones(1)})
        assert array[0] == -15.0


@pytest.mark.parametrize("where", ["argument", "group"])
def test_torchs_classes_take_one(server: LocalServer, name: str, where: str) -> None:
    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    theirs = torch.optim.Adam([weights[0]], lr=0.1, betas=(0.95, 0.99))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, 12)
    options: dict[str, Any] = {
        "lr_schedule": schedules.OneCycle(12),
        "momentum_schedule": schedules.MomentumCycle(12),
    }
    with optd.connect(server.address, job=name) as session:
        group: dict[str, Any] = {"params": [weights[1]], **(options if where == "group" else {})}
        common = options if where == "argument" else {}
        ours = optd.torch.Adam([group], lr=0.1, betas=(0.95, 0.99), session=session, **common)
        for step in range(12):
            for weight in weights:
                weight.grad = torch.full_like(weight, float(step))
            theirs.step()
            ours.step()
            if step < 11:
                scheduler.step()
            torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=0)
        assert ours.state_dict()["param_groups"][0]["lr_schedule"] == "one_cycle(steps=12)"
        ours.load_state_dict(ours.state_dict())


WRONG: dict[str, tuple[Callable[..., optd.Optimizer], str, str, str]] = {
    "a text that is none": (
        optd.SGD,
        "lr_schedule",
        "cosine(steps=0)",
        "sgd: lr_schedule must be cosine with steps in [1, inf), got 'cosine(steps=0)'",
    ),
    "momentum where there is none": (
        optd.Adagrad,
        "momentum_schedule",
        "linear(3)",
        "adagrad: momentum_schedule must be None, as there is neither momentum nor betas, got 'linear(3)'",
    ),
    "a number": (optd.SGD, "lr_schedule", "0.5", ""),
    "betas that reach 1": (
        optd.Adam,
        "momentum_schedule",
        "constant(warmup=10, warmup_start=2)",
        "adam: momentum_schedule must be one under which betas[0] stays in [0, 1), "
        "got 'constant(warmup=10, warmup_start=2)'",
    ),
    "an infinite lr": (
        optd.SGD,
        "lr_schedule",
        "linear(3, start=1e308, end=1e308, warmup_start=1e312)",
        "must be linear with warmup_start in [0, inf)",
    ),
    "a product that is infinite": (
        partial(optd.SGD, lr=1e10),
        "lr_schedule",
        "linear(3, end=1e300)",
        "sgd: lr_schedule must be one under which lr stays in [0, inf), got 'linear(3, end=1e300)'",
    ),
}


@pytest.mark.parametrize(("make", "option", "value", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_one_is_said_at_once(
    server: LocalServer, name: str, make: Callable[..., optd.Optimizer], option: str, value: str, says: str
) -> None:
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(errors.InvalidOption) as caught:
            make([np.ones(2)], session=session, **{option: value})
        assert says in str(caught.value)
        make([np.ones(2)], session=session)
        with pytest.raises(errors.UnknownJob):
            optd.connect(server.address, job=f"{name}-other").info()


def test_worker_that_attaches_takes_the_jobs_schedule(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, worker="w0") as session:
        optd.SGD([np.ones(2)], lr=0.1, session=session)
        with optd.connect(server.address, job=name, worker="w1") as second:
            attached = optd.SGD([np.ones(2)], lr=0.1, lr_schedule="linear(3)", session=second)
            assert "lr_schedule" not in attached.param_groups[0]
            attached.step([np.ones(2)])
            assert session.groups()[0].effective == {}


@pytest.mark.parametrize("face", ["torch", "numpy"])
def test_they_go_on_where_they_stood_in_a_job_that_loads_the_state(server: LocalServer, name: str, face: str) -> None:
    """The job of the checkpoint is gone; and the same job, that is set back to it."""

    def job(number: int) -> tuple[Any, Callable[[], float]]:
        session = optd.connect(server.address, job=f"{name}.{number}")
        options: dict[str, Any] = {"lr": 1.0, "lr_schedule": schedules.Linear(10), "session": session}
        weights = torch.zeros(1, dtype=torch.float64)
        if face == "numpy":
            ours: Any = optd.SGD({"w": weights.numpy()}, **options)
        else:
            parameter = torch.nn.Parameter(weights)
            parameter.grad = torch.ones(1, dtype=torch.float64)
            ours = optd.torch.SGD([("w", parameter)], **options)

        def step() -> float:
            before = weights.item()
            ours.step({"w": np.ones(1)}) if face == "numpy" else ours.step()
            return before - weights.item()

        return ours, step

    first, step = job(1)
    assert [step() for _ in range(4)] == pytest.approx([1, 0.9, 0.8, 0.7])
    saved = first.state_dict()
    assert saved["param_groups"][0]["schedule_start"] == -4
    assert [step() for _ in range(2)] == pytest.approx([0.6, 0.5])
    first.load_state_dict(saved)
    assert [step() for _ in range(2)] == pytest.approx([0.6, 0.5])
    second, step = job(2)
    second.load_state_dict(saved)
    assert [step() for _ in range(2)] == pytest.approx([0.6, 0.5])
    third, step = job(3)
    third.load_state_dict(second.state_dict())
    assert [step() for _ in range(2)] == pytest.approx([0.4, 0.3])
    for each in (first, second, third):
        each.session.close()


def test_a_start_without_a_schedule_stays_where_it_is(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": np.ones(1)}, lr=0.1, schedule_start=100, session=session)
        for _ in range(3):
            optimizer.step({"w": np.ones(1)})
            optimizer.load_state_dict(optimizer.state_dict())
            assert session.groups()[0].options.options["schedule_start"] == 100


def test_a_start_is_of_a_whole_group(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session, pytest.raises(errors.InvalidRule, match="of a whole group"):
        optd.SGD({"w": np.ones(1)}, rules=[{"match": "w", "schedule_start": 3}], session=session)
