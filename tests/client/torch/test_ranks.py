"""Ranks of torch.distributed: their optimizers share jobs without a word, and make each step once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

import optd
from optd.local import LocalServer
from optd.torch import distributed

SCRIPT = Path(__file__).with_name("ddp_script.py")


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
