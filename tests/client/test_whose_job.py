"""Which job an optimizer belongs to, and what it does where that job exists: numpy's face."""

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from faults.processes import wait_for

import optd
from optd import errors
from optd.local import LocalServer
from optd.session import environment, job_names


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPTD_SERVER", "OPTD_JOB", "OPTD_WORKER", "OPTD_IF_EXISTS", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def busy(server: LocalServer) -> Iterator[optd.Session]:
    """A worker of the job `busy`, which has made a step."""
    with optd.connect(server.address, job="busy", worker="w0") as session:
        optd.SGD({"w": np.zeros(3)}, lr=1.0, session=session).step({"w": np.ones(3)})
        yield session


def names(server: LocalServer) -> list[str]:
    return [job.name for job in optd.jobs(server=server.address)]


def test_optimizers_without_a_job_have_one_each(server: LocalServer) -> None:
    weights = [np.zeros(3), np.ones(3)]
    before = set(names(server))
    with (
        optd.SGD({"w": weights[0]}, lr=1.0, server=server.address) as one,
        optd.SGD({"w": weights[1]}, lr=1.0, server=server.address) as other,
    ):
        for _ in range(2):
            one.step({"w": np.ones(3)})
            other.step({"w": np.ones(3)})
        assert (weights[0].tolist(), weights[1].tolist()) == ([-2] * 3, [-1] * 3)
        own = set(names(server)) - before
        assert own == {one.session.job, other.session.job}
        assert all(name.startswith(job_names.program() + "-") for name in own)
        assert all(job.ephemeral for job in optd.jobs(server=server.address) if job.name in own)
        assert one.session.info().ephemeral
    assert not own & set(names(server))


@pytest.mark.slow
def test_a_job_without_a_name_ends_with_an_optimizer_that_nobody_holds(server: LocalServer) -> None:
    optimizer = optd.SGD({"w": np.zeros(3)}, lr=1.0, server=server.address)
    job = optimizer.session.job
    del optimizer
    gc.collect()
    wait_for(lambda: job not in names(server), f"job {job} ends")


def test_a_program_that_ends_takes_its_job_along(server: LocalServer) -> None:
    program = (
        "import numpy as np, optd\n"
        f"optimizer = optd.SGD([np.zeros(2)], lr=1.0, server={server.address!r})\n"
        "optimizer.step([np.ones(2)])\n"
        "print(optimizer.session.job)\n"
    )
    job = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
    assert job.startswith("python-")
    assert job not in names(server)


def test_the_environment_names_a_job_that_is_shared(server: LocalServer, name: str, monkeypatch) -> None:
    monkeypatch.setenv("OPTD_JOB", name)
    monkeypatch.setenv("OPTD_SERVER", server.address)
    optd.SGD([np.zeros(2)], lr=1.0).close()
    assert name in names(server)
    assert optd.delete_job(name).name == name
    assert name not in names(server)
    with pytest.raises(errors.UnknownJob):
        optd.delete_job(name)


# Jobs that exist


def test_if_exists_is_one_of_three(server: LocalServer, monkeypatch) -> None:
    with pytest.raises(errors.InvalidRequest, match="if_exists must be 'attach', 'fail' or 'replace', got 'Fail'"):
        optd.connect(server.address, if_exists="Fail")
    monkeypatch.setenv("OPTD_IF_EXISTS", "no")
    with pytest.raises(errors.InvalidRequest, match="OPTD_IF_EXISTS must be .* got 'no'"):
        optd.connect(server.address)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_job_that_exists_may_be_an_error(server: LocalServer, busy: optd.Session, by: str, monkeypatch) -> None:
    how = {"if_exists": "fail"} if by == "argument" else {}
    if by == "environment":
        monkeypatch.setenv("OPTD_IF_EXISTS", "fail")
    with pytest.raises(
        errors.JobExists, match="'busy' exists already; if_exists='attach' takes part in it, .*replace'"
    ):
        optd.SGD({"w": np.zeros(3)}, lr=1.0, server=server.address, job="busy", worker="w1", **how)
    assert busy.info().version.version == 1


def test_a_job_that_must_not_exist_is_created(server: LocalServer, name: str) -> None:
    with optd.SGD([np.zeros(2)], lr=1.0, server=server.address, job=name, if_exists="fail") as optimizer:
        assert (optimizer.version, optimizer.session.info().ephemeral) == (0, False)


def test_a_job_is_replaced_where_nobody_else_uses_it(server: LocalServer, busy: optd.Session, name: str) -> None:
    for start in (1.0, 5.0):  # the first time there is none
        weights = np.full(3, start)
        how = {"server": server.address, "job": name, "worker": "w1", "if_exists": "replace"}
        with optd.SGD({"w": weights}, lr=1.0, **how) as optimizer:
            assert optimizer.version == 0
            optimizer.step({"w": np.ones(3)})
            assert weights.tolist() == [start - 1] * 3
    with pytest.raises(errors.JobInUse, match=r"'busy' cannot be replaced: other workers hold a lease there \(w0\)"):
        optd.SGD({"w": np.zeros(3)}, lr=1.0, server=server.address, job="busy", worker="w1", if_exists="replace")
    assert busy.info().version.version == 1


def trained(server: LocalServer, name: str) -> tuple[np.ndarray, dict]:
    """Leaves a job that has made two steps; its weights and state after the first one."""
    weights = np.zeros(3)
    with optd.SGD({"w": weights}, lr=1.0, momentum=0.5, server=server.address, job=name, worker="w0") as optimizer:
        optimizer.step({"w": np.ones(3)})
        checkpoint = weights.copy(), optimizer.state_dict()
        optimizer.step({"w": np.ones(3)})
    return checkpoint


def attach(server: LocalServer, name: str, weights: np.ndarray, **how) -> optd.Optimizer:
    how = {"lr": 1.0, "momentum": 0.5, "worker": "w1", **how}
    return optd.SGD({"w": weights}, server=server.address, job=name, **how)


def test_a_worker_whose_weights_are_replaced_is_told_when_it_uses_the_job(server: LocalServer, name: str) -> None:
    trained(server, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = attach(server, name, np.full(3, 9.0))
    with optimizer:
        with pytest.warns(
            UserWarning, match=f"job '{name}' .* of version 2, last stepped at 20.*if_exists='replace'"
        ) as told:
            optimizer.step({"w": np.ones(3)})
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step({"w": np.ones(3)})


@pytest.mark.slow
def test_a_worker_whose_process_is_gone_does_not_count(server: LocalServer, name: str) -> None:
    """It was killed, and its lease has not run out yet."""
    program = (
        "import numpy as np, optd, os, signal\n"
        f"optimizer = optd.SGD({{'w': np.zeros(3)}}, lr=1.0, momentum=0.5, server={server.address!r}, job={name!r})\n"
        "optimizer.step({'w': np.ones(3)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    with attach(server, name, np.full(3, 9.0)) as optimizer:
        assert [worker.active for worker in optimizer.session.workers()] == [True, True]
        with pytest.warns(UserWarning, match=f"job '{name}' .* of\\s+version 1"):
            optimizer.step({"w": np.ones(3)})


def test_other_options_are_told_with_the_weights(server: LocalServer, name: str, caplog) -> None:
    trained(server, name)
    with attach(server, name, np.full(3, 9.0), lr=0.25) as optimizer:
        assert not caplog.records
        with pytest.warns(UserWarning, match="have replaced those that were here"):
            optimizer.pull()
    assert "goes on with lr=1.0, not 0.25; change it in param_groups" in caplog.text


def test_nobody_is_told_what_is_no_surprise(server: LocalServer, busy: optd.Session, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, state = trained(server, name)
        with optd.connect(server.address, job=name) as reader:
            known = reader.pull()["w"]
        with attach(server, name, known.copy()) as optimizer:  # the job's own weights
            optimizer.step({"w": np.ones(3)})
        with attach(server, name, np.zeros(3)) as optimizer:  # the state is loaded next
            optimizer.load_state_dict(state)
            optimizer.step({"w": np.ones(3)})
        # Another worker is training it.
        with optd.SGD({"w": np.full(3, 9.0)}, lr=1.0, server=server.address, job="busy", worker="w1") as optimizer:
            optimizer.pull()


def test_a_checkpoint_is_loaded_with_the_weights_that_were_there_before(server: LocalServer, name: str) -> None:
    weights, state = trained(server, name)
    expected = weights - (0.5 * 1 + 1)  # momentum goes on from one step
    with attach(server, name, weights) as optimizer:
        optimizer.load_state_dict(state)
        assert weights.tolist() == [-1] * 3
        optimizer.step({"w": np.ones(3)})
        assert weights.tolist() == expected.tolist()


def test_state_that_is_only_put_on_a_device_is_no_checkpoint(server: LocalServer, name: str) -> None:
    """accelerate reads the state and loads it again, before a script loads a checkpoint, or does not."""
    weights, state = trained(server, name)
    with attach(server, name, weights) as optimizer:
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.load_state_dict(state)
        assert weights.tolist() == [-1] * 3
        optimizer.step({"w": np.ones(3)})
    with attach(server, name, np.full(3, 9.0)) as optimizer:
        optimizer.load_state_dict(optimizer.state_dict())
        with pytest.warns(UserWarning, match="goes on with it"):
            optimizer.step({"w": np.ones(3)})


def test_a_job_that_stands_at_the_checkpoint_keeps_its_weights(server: LocalServer, name: str) -> None:
    weights = np.zeros(3)
    with attach(server, name, weights) as optimizer:
        optimizer.step({"w": np.ones(3)})
        state = optimizer.state_dict()
    again = np.full(3, 9.0)
    with attach(server, name, again) as optimizer:
        optimizer.load_state_dict(state)
        assert again.tolist() == weights.tolist()


# One worker, one optimizer


@pytest.mark.slow
def test_two_optimizers_of_one_worker_are_an_error_at_the_second_one(server: LocalServer, name: str) -> None:
    how = {"server": server.address, "job": name, "worker": "w0", "lr": 1.0}
    with optd.SGD([np.zeros(2)], **how) as optimizer:
        with pytest.raises(errors.WorkerInUse, match=f"open optimizer in job '{name}' as worker 'w0' already: close"):
            optd.SGD([np.zeros(2)], **how)
        optimizer.step([np.ones(2)])  # it has not been fenced
    with pytest.warns(UserWarning, match="goes on with it"), optd.SGD([np.zeros(2)], **how) as optimizer:
        optimizer.step([np.ones(2)])
        assert optimizer.version == 2


@pytest.mark.slow
def test_an_optimizer_in_a_reference_cycle_is_no_rival(server: LocalServer, name: str) -> None:
    how = {"server": server.address, "job": name, "worker": "w0", "lr": 1.0}
    gc.disable()
    try:
        optimizer = optd.SGD([np.zeros(2)], **how)
        optimizer.itself = optimizer  # type: ignore[attr-defined]
        del optimizer
        optd.SGD([np.zeros(2)], **how).close()
    finally:
        gc.enable()


@pytest.mark.parametrize("late", ["server", "job", "worker", "if_exists", "policy", "gradients", "averages"])
def test_what_opens_a_session_comes_too_late_for_an_open_one(server: LocalServer, name: str, late: str) -> None:
    values = {"policy": optd.Async(), "gradients": optd.Gradients(), "averages": optd.EMA(), "if_exists": "fail"}
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(errors.InvalidRequest, match=f"{late}= must be given to optd.connect"):
            optd.SGD([np.zeros(2)], lr=1.0, session=session, **{late: values.get(late, "x")})
        optd.SGD([np.zeros(2)], lr=1.0, session=session)


# Policies


def test_who_asks_for_another_policy_is_refused_and_who_asks_for_none_takes_it(server: LocalServer, name: str) -> None:
    how = {"server": server.address, "job": name, "lr": 1.0}
    first = optd.SGD([np.zeros(2)], worker="a", policy=optd.Sync(2), gradients=optd.Gradients(clip_norm=3.0), **how)
    with first:
        assert first.session.info().options.options["clip_norm"] == 3.0
        for asked in (optd.Sync(3), optd.Async()):
            with pytest.raises(errors.JobMismatch, match=r"policy Sync\(workers=2\), this registration has"):
                optd.SGD([np.zeros(2)], worker="b", policy=asked, **how)
        for taken in ({}, {"policy": optd.Sync(2)}):
            with optd.SGD([np.zeros(2)], worker="b", **taken, **how) as second:
                assert second.session.info().policy == optd.Sync(2)


# Names


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["/home/me/train.py", "--lr", "1"], "train"),
        (["my script (2).py"], "my-script-2"),
        (["/venv/lib/tool/__main__.py"], "tool"),
        (["-c"], "python"),
        ([""], "python"),
        ([], "python"),
        (["x" * 300], "x" * 60),
    ],
)
def test_a_person_recognises_the_program(monkeypatch, arguments: list[str], program: str) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert job_names.program() == program
    own = [job_names.own_job().name for _ in range(2)]
    assert own[0] != own[1]
    assert all(name.startswith(program + "-") for name in own)


@pytest.fixture
def launched(monkeypatch):
    """Sets variables as torchrun does; returns the names of the job and the worker that follow."""
    monkeypatch.setenv(job_names.RANK_PROCESS, "")

    def launch(**variables: str) -> tuple[job_names.JobName, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(job_names, "_numbers", iter([1]))
        return job_names.job_name(None), environment.worker(None)

    defaults: dict[str, str] = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    launch(**defaults, GROUP_WORLD_SIZE="1", TORCHELASTIC_RUN_ID="run", TORCHELASTIC_RESTART_COUNT="0")
    return launch


def test_ranks_of_one_launch_share_a_job_and_others_do_not(launched) -> None:
    job, worker = launched()
    assert (job.unnamed, job.shared) == (True, True)
    assert worker == "rank0000-run"
    assert launched(RANK="1") == (job, "rank0001-run")
    other, worker = launched(TORCHELASTIC_RUN_ID="other")
    assert other != job
    assert worker == "rank0001-other"
    assert job_names.job_name("mine") == job_names.JobName("mine")


def test_ranks_that_are_started_again_go_on_in_their_job_whatever_their_number(launched) -> None:
    first = launched()
    assert launched(TORCHELASTIC_RESTART_COUNT="1") == first
    for count in ("1", "12"):
        assert launched(WORLD_SIZE=count) == first
    assert launched(RANK="11")[1] > launched(RANK="9")[1]


def test_without_an_id_a_launch_is_known_by_its_process_or_its_address(launched) -> None:
    first = launched(TORCHELASTIC_RUN_ID="none")
    assert launched(TORCHELASTIC_RESTART_COUNT="1", MASTER_PORT="29501") == first
    several = launched(GROUP_WORLD_SIZE="2")
    assert several != first
    assert launched(MASTER_PORT="29502") != several


def test_other_launchers_are_taken_for_one_if_they_start_several_ranks(launched, monkeypatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launched()[0].shared
    assert launched(RANK="1")[1] > launched(RANK="0")[1]
    job, worker = launched(WORLD_SIZE="1")
    assert not job.shared
    assert worker.endswith(f"-{os.getpid()}")
    assert not launched(WORLD_SIZE="many")[0].shared


def test_what_a_rank_starts_is_no_rank(launched, monkeypatch) -> None:
    launched()
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    child, name = launched()
    assert not child.shared
    assert name.endswith("-12345")
    assert launched(TORCHELASTIC_RUN_ID="nested")[0].shared


@pytest.mark.parametrize(("count", "most", "again"), [("0", "3", True), ("3", "3", False), ("", "", False)])
def test_torchrun_starts_a_rank_again_as_long_as_it_has_attempts_left(monkeypatch, count, most, again) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", most)
    assert job_names.will_be_started_again() == again
