"""A server comes back without a job: its workers say so, or create it anew if they may."""

import logging
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.faults.durable import Durable
from tests.faults.processes import in_background, wait_for
from tests.faults.trainings import Open, opener, slopes, start

import optd
import optd.torch
from optd_wire.errors import JobLost, NothingDurable, UnknownJob

pytestmark = pytest.mark.slow

LANES = ("grpc", "shm")
ONES = {"w": np.ones(3, np.float32)}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Durable]:
    with Durable(tmp_path_factory.mktemp("data"), "--durability", "none") as started:
        yield started


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A job of its own for each test."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name).strip("-")


@pytest.fixture
def opened(server: Durable, job: str) -> Open:
    return opener(server.address, job, recreate=True)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [each for each in found if "trying again" not in each]


def test_without_leave_to_create_it_anew_every_call_says_what_is_wrong(server, opened, job):
    net = torch.nn.Linear(2, 2)
    with opened(recreate=False) as session, opened(job="torch", recreate=False) as other:
        optimizer = optd.SGD(start(), lr=1.0, session=session)
        of_torch = optd.torch.SGD(net.parameters(), lr=1.0, session=other)
        optimizer.step(slopes(start(), 1))
        server.restart()
        for call in (
            lambda: optimizer.step(slopes(start(), 1)),
            lambda: optimizer.push(slopes(start(), 1)),
            optimizer.pull,
            optimizer.flush,
            optimizer.state_dict,
            optimizer.push_weights,
            lambda: optimizer.add_param_group({"params": {"more": np.zeros(2, np.float32)}}),
            session.info,
            session.wait_durable,
            of_torch.pull,
            of_torch.state_dict,
        ):
            with pytest.raises(JobLost, match="was restarted without job .* --data-dir, .*recreate=True") as told:
                call()
            assert "\n" not in str(told.value)
        with pytest.raises(UnknownJob):
            optd.delete_job(job, server=server.address)


@pytest.mark.parametrize("lane", LANES)
def test_the_first_worker_creates_the_job_anew_and_the_second_attaches(server, opened, job, caplog, lane):
    """With groups that were added, options that were changed, and a push in flight."""
    weights, theirs = {"w": np.zeros(3, np.float32)}, {"w": np.zeros(3, np.float32)}
    both = {**ONES, "v": np.ones(2, np.float32)}
    policy = optd.Sync(workers=2)
    with opened(policy=policy, lane=lane) as session, opened("w1", policy=policy, lane=lane) as second:
        one = optd.SGD(weights, lr=1.0, session=session)
        other = optd.SGD(theirs, lr=1.0, session=second)
        one.add_param_group({"params": {"v": np.full(2, 7, np.float32)}, "lr": 0.5})
        other.add_param_group({"params": {"v": np.full(2, 7, np.float32)}, "lr": 0.5})
        session.set_options(nonfinite="skip")
        first_push = in_background(lambda: other.step(both))
        one.step(both)
        first_push.result(30)
        assert weights["w"].tolist() == theirs["w"].tolist() == [-1] * 3
        one.param_groups[0]["lr"] = other.param_groups[0]["lr"] = 2.0
        waiting = in_background(lambda: one.step(both))
        wait_for(lambda: any(worker.waiting for worker in second.workers()), "a push that waits")
        server.restart()
        # The new job begins with the weights of both workers, so no gradient is dropped.
        address = server.address
        wait_for(lambda: any(each.name == job and each.workers for each in optd.jobs(server=address)), "a job anew", 30)
        assert not waiting.done()
        other.step(both)
        (attached,) = (each for each in warnings_of(caplog) if "worker w1" in each)
        assert (
            "worker w1 goes on in a new one, which has the weights and options of the worker that was first" in attached
        )
        assert [group.options.group for group in second.info().groups] == ["group0", "group1"]
        assert second.info().options.options["nonfinite"] == "skip"
        assert second.info().policy == policy
        assert waiting.result(30).version.version == 1
        assert (session.lane, second.lane) == (lane, lane)
        for name, expected in (("w", -3), ("v", 6)):
            assert set(one.weights[name]) == set(other.weights[name]) == {np.float32(expected)}


def test_a_job_that_is_created_anew_trains_as_one_that_begins_with_those_weights(server, opened):
    """Also what an encoding has left out of earlier gradients counts."""
    weights, calm = start(), start()
    with opened(encoding="topk:0.1") as session:
        optimizer = optd.SGD(weights, lr=0.1, session=session)
        for number in range(6):
            optimizer.step(slopes(weights, number))
            if number == 2:
                server.restart()
        assert session.version == 3
    with optd.connect(server.address, job="calm", encoding="topk:0.1") as session:
        optimizer = optd.SGD(calm, lr=0.1, session=session)
        for number in range(6):
            optimizer.step(slopes(calm, number))
    for name, array in weights.items():
        np.testing.assert_array_equal(array, calm[name])


@pytest.mark.parametrize("lane", LANES)
def test_torch_creates_the_job_anew(server, opened, caplog, lane):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with opened(lane=lane) as session:
        optimizer = optd.torch.Adam(net.parameters(), lr=0.1, session=session, buffers=net, zero_copy=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

        def step() -> None:
            optimizer.zero_grad()
            net(torch.eye(2)).square().mean().backward()
            optimizer.step()
            scheduler.step()

        step()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        server.restart()
        optimizer.pull()
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        step()
        assert (session.version, optimizer.param_groups[0]["lr"]) == (1, 0.025)
        assert "has the weights and options of this worker" in " ".join(warnings_of(caplog))
        with opened("reader") as reader:
            assert reader.info().groups[1].options.options["lr"] == 0.05


def test_a_search_begins_again_in_a_job_that_was_created_anew(server, opened):
    weights = {"w": np.full(3, 4, np.float32)}
    calls = []
    with opened() as session:
        optimizer = optd.LBFGS(weights, lr=0.5, max_iter=3, session=session)

        def closure() -> tuple[float, dict[str, np.ndarray]]:
            calls.append(weights["w"][0])
            if len(calls) == 2:
                server.restart()
            return float(np.square(weights["w"]).sum()), {"w": 2 * weights["w"]}

        loss = optimizer.step(closure)
        assert calls[2] == calls[1], "its weights are those of the job that was created anew"
        assert loss == pytest.approx(3 * float(calls[2]) ** 2)
        assert abs(float(weights["w"][0])) < calls[2]


def test_a_change_of_weights_is_in_the_job_that_is_created_anew(server, opened, recwarn):
    weights = {"w": np.zeros(3, np.float32)}
    with opened() as session:
        optimizer = optd.SGD(weights, lr=1.0, session=session)
        optimizer.step(ONES)
        server.restart()
        weights["w"][:] = 5
        optimizer.step(ONES)
        assert weights["w"].tolist() == [4] * 3
    assert not [str(each.message) for each in recwarn if "have moved on" in str(each.message)]


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_state_is_read_from_and_loaded_into_a_job_that_is_created_anew(server, opened, job, name):
    with opened(job=f"{job}-read") as session, opened(job=f"{job}-loaded") as other:
        if name == "numpy":
            made = [optd.SGD({"w": np.zeros(3, np.float32)}, momentum=0.9, session=each) for each in (session, other)]
            made[1].step(ONES)
        else:
            parameter = torch.nn.Parameter(torch.zeros(3))
            made = [optd.torch.SGD([parameter], momentum=0.9, session=each) for each in (session, other)]
            parameter.grad = torch.ones(3)
            made[1].step()
        saved = made[1].state_dict()
        server.restart()
        assert made[0].state_dict()["state"] == {}
        made[1].load_state_dict(saved)
        loaded = made[1].state_dict()
        assert loaded["param_groups"] == saved["param_groups"]
        assert loaded["state"][0]["momentum_buffer"].tolist() == [1] * 3


def test_a_server_that_keeps_nothing_refuses_to_promise(opened):
    with pytest.raises(NothingDurable):
        opened(durable=True)
    with opened() as session:
        optd.SGD({"w": np.zeros(3, np.float32)}, session=session).step(ONES)
        with pytest.raises(NothingDurable):
            session.wait_durable()
        assert session.durable_version == 0
