"""A server that keeps snapshots alone is killed: its jobs go back, and their workers go on from there and say so."""

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
from optd.registration.recovery import UndonePush
from optd_wire.errors import InvalidRequest, RolledBack, UnknownJob

pytestmark = pytest.mark.slow

LANES = ("grpc", "shm")
SELDOM = ("--snapshot-seconds", "3600")
"""Snapshots are written when the job is created, and when somebody waits for one."""
ONES = {"w": np.ones(3, np.float32)}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Durable]:
    with Durable(tmp_path_factory.mktemp("data"), *SELDOM) as started:
        yield started


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A job of its own for each test."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name).strip("-")


@pytest.fixture
def opened(server: Durable, job: str) -> Open:
    return opener(server.address, job)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [each for each in found if "trying again" not in each]


@pytest.mark.parametrize("lane", LANES)
def test_a_worker_goes_on_from_the_version_that_the_server_has(server, opened, caplog, lane):
    """As if the steps since then had not been made."""
    weights = start()
    with opened(lane=lane) as session:
        optimizer = optd.Adam(weights, lr=0.1, session=session)
        for number in range(5):
            optimizer.step(slopes(weights, number))
        assert session.wait_durable() == session.durable_version == 5
        at_5 = {name: array.copy() for name, array in weights.items()}
        for number in range(4):
            optimizer.step(slopes(weights, 100 + number))
        assert session.durable_version == 5
        server.restart()
        result = optimizer.step(slopes(weights, 200))
        assert isinstance(result, UndonePush) and result is optimizer.last
        assert (session.version, optimizer.version, session.lane) == (5, 5, lane)
        for name, array in weights.items():
            np.testing.assert_array_equal(array, at_5[name])
        told = " ".join(warnings_of(caplog))
        assert "went back to version 5, the last" in told and "has lost 4 acknowledged pushes of worker w0" in told
        assert "--durability log" in told
        for number in range(5, 10):
            optimizer.step(slopes(weights, number))
        assert session.version == 10
    calm = start()
    with opened(job="calm") as session:
        optimizer = optd.Adam(calm, lr=0.1, session=session)
        for number in range(10):
            optimizer.step(slopes(calm, number))
    for name, array in weights.items():
        np.testing.assert_array_equal(array, calm[name])


def test_a_worker_that_has_joined_after_the_last_snapshot_goes_on(server, opened, caplog):
    with opened("old") as first, opened("new") as late:
        one = optd.SGD({"w": np.zeros(3, np.float32)}, lr=1.0, session=first)
        one.step(ONES)
        first.wait_durable()
        weights = np.zeros(3, np.float32)
        other = optd.SGD({"w": weights}, lr=1.0, session=late)
        other.step(ONES)
        other.step(ONES)
        server.restart()
        assert isinstance(other.step(ONES), UndonePush)
        assert weights.tolist() == [-1] * 3
        assert "has lost 2 acknowledged pushes of worker new" in " ".join(warnings_of(caplog))
        other.step(ONES)
        assert weights.tolist() == [-2] * 3


def test_a_worker_that_has_joined_again_after_the_last_snapshot_goes_on(server, opened, caplog):
    """Each time that the server goes back, and also if it does so twice from one snapshot."""
    weights = np.zeros(3, np.float32)
    with opened() as session:
        optd.SGD({"w": weights}, lr=1.0, session=session).step(ONES)
        session.wait_durable()
    with opened() as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        for lost in (2, 1):
            for _ in range(lost):
                optimizer.step(ONES)
            server.restart()
            caplog.clear()
            assert isinstance(optimizer.step(ONES), UndonePush)
            assert weights.tolist() == [-1] * 3
            assert f"has lost {lost} acknowledged pushes" in " ".join(warnings_of(caplog))


def test_a_push_in_doubt_of_a_worker_that_has_joined_after_the_last_snapshot_is_given_up(server, opened, caplog):
    with opened("old") as first, opened("new", policy=optd.Sync(workers=2)) as late:
        one = optd.SGD({"w": np.zeros(3, np.float32)}, lr=1.0, session=late)
        late.wait_durable()
        other = optd.SGD({"w": np.zeros(3, np.float32)}, lr=1.0, session=first)
        waiting = in_background(lambda: other.step(ONES))
        wait_for(lambda: any(worker.waiting for worker in late.workers()), "a push that waits")
        server.restart()
        assert isinstance(waiting.result(30), UndonePush)
        assert one is not None


def test_a_job_that_is_new_when_the_server_is_killed_is_there(server, opened, caplog):
    weights = np.zeros(3, np.float32)
    with opened() as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.step(ONES)
        server.restart()
        assert isinstance(optimizer.step(ONES), UndonePush)
        assert weights.tolist() == [0] * 3
        told = " ".join(warnings_of(caplog))
        assert "went back to version 0" in told and "has lost 1 acknowledged pushes" in told


def test_a_group_that_is_newer_than_the_snapshot_is_added_again(server, opened):
    weights = {"w": np.zeros(3, np.float32)}
    with opened() as session:
        optimizer = optd.SGD(weights, lr=1.0, session=session)
        optimizer.step(ONES)
        session.wait_durable()
        added = {"v": np.full(2, 7, np.float32)}
        optimizer.add_param_group({"params": added, "lr": 0.5})
        both = {**ONES, "v": np.ones(2, np.float32)}
        optimizer.step(both)
        server.restart()
        assert isinstance(optimizer.step(both), UndonePush)
        assert [group.options.group for group in session.info().groups] == ["group0", "group1"]
        optimizer.step(both)
        assert (weights["w"].tolist(), added["v"].tolist()) == ([-2] * 3, [6] * 2)


def test_torch_goes_on_from_the_version_that_the_server_has(server, opened, caplog):
    parameter = torch.nn.Parameter(torch.zeros(3))
    with opened() as session:
        optimizer = optd.torch.SGD([parameter], lr=1.0, session=session)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)

        def step() -> None:
            parameter.grad = torch.ones(3)
            optimizer.step()
            scheduler.step()

        step()
        session.wait_durable()
        step()
        server.restart()
        step()
        assert isinstance(optimizer.last, UndonePush)
        assert parameter.tolist() == [-1] * 3
        assert "drops a gradient" in " ".join(warnings_of(caplog))
        step()
        assert parameter.tolist() == [-1.5] * 3, "the scheduler has taken three steps"


def test_workers_go_on_after_a_power_cut_has_taken_the_end_of_a_log(tmp_path, caplog):
    """The server does not notice: its log just ends earlier, and the epochs still count."""
    with (
        Durable(tmp_path, "--durability", "log", "--fsync-interval-ms", "60000", *SELDOM) as server,
        opener(server.address, "j")("ahead") as ahead,
        opener(server.address, "j")("idle") as idle,
    ):
        weights, others = np.zeros(3, np.float32), np.zeros(3, np.float32)
        one = optd.SGD({"w": weights}, lr=1.0, session=ahead)
        other = optd.SGD({"w": others}, lr=1.0, session=idle)
        other.step(ONES)
        other.session.wait_durable()
        (log,) = tmp_path.glob("jobs/*/log/*.log")
        synced = log.read_bytes()
        for _ in range(3):
            one.step(ONES)
        other.pull()
        server.kill()
        server.server.stop()
        log.write_bytes(synced)
        server.start()
        assert isinstance(one.step(ONES), UndonePush)
        assert isinstance(other.step(ONES), UndonePush)
        told = " ".join(warnings_of(caplog))
        assert "has lost 3 acknowledged pushes of worker ahead" in told
        assert "has lost 0 acknowledged pushes of worker idle" in told
        one.step(ONES)
        other.step(ONES)
        assert others.tolist() == [-3] * 3


def test_a_worker_that_waits_for_a_version_that_is_lost_is_not_told_that_it_is_kept(server, opened):
    with opened() as session:
        optimizer = optd.SGD({"w": np.zeros(3, np.float32)}, lr=1.0, session=session)
        optimizer.step(ONES)
        assert session.wait_durable(1) == 1
        with pytest.raises(InvalidRequest, match="job '.*' is at version 1, so version 2 cannot be kept"):
            session.wait_durable(2)
        optimizer.step(ONES)
        server.restart()
        for version in (None, 2):
            with pytest.raises(RolledBack, match="the server went back to version 1"):
                session.wait_durable(version)
        optimizer.pull()
        assert session.wait_durable() == 1


@pytest.mark.parametrize("lane", LANES)
def test_each_step_of_a_durable_session_is_kept(server, opened, caplog, lane):
    weights = np.zeros(3, np.float32)
    with opened(durable=True, lane=lane) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        for number in range(3):
            result = optimizer.step(ONES)
            assert result.version.durable_version == result.version.version == number + 1
        server.restart()
        assert isinstance(optimizer.step(ONES), UndonePush)
        assert weights.tolist() == [-3] * 3
        assert "has lost 0 acknowledged pushes" in " ".join(warnings_of(caplog))


def test_a_job_that_somebody_has_deleted_after_a_restart_is_not_lost(tmp_path):
    with (
        Durable(tmp_path, "--durability", "log") as server,
        opener(server.address, "j", recreate=True)() as session,
    ):
        optimizer = optd.SGD({"w": np.zeros(3, np.float32)}, lr=1.0, session=session)
        optimizer.step(ONES)
        server.restart()
        optimizer.pull()
        optimizer.step(ONES)
        optd.delete_job("j", server=server.address)
        with pytest.raises(UnknownJob):
            optimizer.step(ONES)
