"""Ranks of torch.distributed: their optimizers share jobs without a word, and make each step once."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

import optd
from optd.local import LocalServer
from optd.session import job_names
from optd.session.departure import open_sessions
from optd.torch import SGD, distributed
from optd_wire.values import Policy

SCRIPT = Path(__file__).with_name("ddp_script.py")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_under_torchrun_each_optimizer_is_one_job_that_steps_once(server: LocalServer) -> None:
    settings = {"OPTD_SERVER": server.address, "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    before = {job.name for job in optd.jobs(server=server.address)}
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda each: each["rank"])
    assert [each["rank"] for each in seen] == [0, 1]
    for each in seen:
        assert each["versions"] == [3, 3]
        assert each["workers"] == [2, 2]
        assert each["on_server"] == 2
        assert each["differs"] < 1e-6
        assert max(each["changed"].values()) < 1e-15, each["changed"]
        assert "must be a whole tensor, got the part of it that this rank holds" in each["shard"]
    assert seen[0]["jobs"] == seen[1]["jobs"]
    assert all(name.startswith("ddp_script-") for name in seen[0]["jobs"])
    assert {job.name for job in optd.jobs(server=server.address)} <= before  # they have ended with their ranks


def test_ranks_without_a_launcher_agree_on_a_job_through_their_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)

    def named(number: int) -> str:
        monkeypatch.setattr(distributed, "_numbers", iter([number]))
        found = distributed.shared_by_ranks()
        assert found is not None
        assert found.unnamed
        return found.name

    assert named(1) == named(1) != named(2)


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables as torchrun does for rank 0."""

    def become(count: int, hosts: int = 1, run: str = "run") -> None:
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29500",
            "GROUP_WORLD_SIZE": str(hosts),
            "TORCHELASTIC_RUN_ID": run,
            job_names.RANK_PROCESS: "",
        }.items():
            monkeypatch.setenv(name, value)

    return become


def test_ranks_of_a_launch_have_a_policy_also_without_a_process_group(rank: Callable[..., None]) -> None:
    assert distributed.policy_of_ranks() is None
    rank(4)
    assert distributed.policy_of_ranks() == optd.Sync(workers=4)
    rank(1)
    assert distributed.policy_of_ranks() == optd.Sync(workers=1)
    rank(4, hosts=2)
    assert distributed.policy_of_ranks() == optd.Sync(workers=4, on_death="fail")


def policy_after(server: LocalServer, name: str, **how: Any) -> Policy:
    with SGD([torch.zeros(2)], lr=0.1, server=server.address, job=name, **how) as optimizer:
        return optimizer.session.info().policy


def test_the_policy_follows_the_number_of_ranks(server: LocalServer, name: str, rank: Callable[..., None]) -> None:
    """Fewer, more, and as many as at first, when the job has another policy than the one it was created with."""
    for count in (2, 1, 3, 2):
        rank(count)
        assert policy_after(server, name) == optd.Sync(workers=count)


def test_what_a_person_has_chosen_stays(server: LocalServer, name: str, rank: Callable[..., None]) -> None:
    rank(2)
    policy_after(server, name)
    with optd.connect(server.address, job=name, worker="person") as person:
        person.set_policy(optd.Sync(workers=2, quorum=2, grace=0.5))
        rank(1)
        assert policy_after(server, name) == optd.Sync(workers=1, quorum=1, grace=0.5)
        person.set_policy(optd.Async())
    rank(2)  # the policy that it was created with
    assert policy_after(server, name) == optd.Async()
    rank(3)
    with pytest.raises(optd.errors.JobMismatch, match="pass policy= to name another one"):
        policy_after(server, name)
    assert policy_after(server, name, policy=optd.Sync(workers=2)) == optd.Async()


def test_a_launch_does_not_resize_a_job_that_others_take_part_in(
    server: LocalServer, name: str, rank: Callable[..., None]
) -> None:
    rank(2)
    with SGD([torch.zeros(2)], lr=0.1, server=server.address, job=name):
        rank(3, run="another")
        with pytest.raises(optd.errors.JobMismatch, match=r"Sync\(workers=3"):
            policy_after(server, name)
    assert policy_after(server, name) == optd.Sync(workers=3)


def test_a_rank_that_is_started_again_goes_on_with_the_job_or_with_a_checkpoint_that_it_loads(
    server: LocalServer, name: str, rank: Callable[..., None]
) -> None:
    """Without a checkpoint the server's weights and momentum count; one that is loaded replaces both."""
    rank(1)

    def begin() -> tuple[torch.Tensor, SGD]:
        weights = torch.full((2,), 9.0)
        return weights, SGD([weights], lr=1.0, momentum=0.5, server=server.address, job=name)

    def step(weights: torch.Tensor, optimizer: SGD) -> list[float]:
        weights.grad = torch.ones(2)
        optimizer.step()
        return weights.tolist()

    weights, optimizer = begin()
    step(weights, optimizer)
    checkpoint = copy.deepcopy((weights, optimizer.state_dict()))
    assert step(weights, optimizer) == [6.5] * 2
    worker, epoch = optimizer.session.worker, optimizer.session.epoch
    fenced = optimizer
    open_sessions.discard(fenced.session)  # as if it were of another process
    weights, optimizer = begin()
    assert (optimizer.session.worker, optimizer.session.epoch) == (worker, epoch + 1)
    assert weights.tolist() == [6.5] * 2
    with pytest.warns(UserWarning, match="its weights of version 2"):
        assert step(weights, optimizer) == [4.75] * 2
    with pytest.raises(optd.errors.StaleEpoch):
        fenced.step()
    optimizer.close()
    weights, optimizer = begin()
    weights.copy_(checkpoint[0])
    optimizer.load_state_dict(checkpoint[1])
    assert step(weights, optimizer) == [6.5] * 2
    optimizer.close()
    fenced.close()
