"""`optctl checkpoint` and `optctl rollback`, as processes against a server that keeps its jobs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from client.ctl.conftest import Optctl
from faults.processes import wait_for

import optd
import optd.torch
from optd.local import LocalServer, local

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server with a snapshot of every version."""
    folder = tmp_path_factory.mktemp("data")
    with local("--snapshot-versions", "1", "--keep-snapshots", "9", data_dir=folder, durability="log") as running:
        yield running


@pytest.fixture
def optctl(keeping: LocalServer) -> Optctl:
    return Optctl(keeping.address)


@pytest.fixture
def job(keeping: LocalServer, name: str) -> str:
    """A job at version 2, with snapshots of versions 1 and 2, and no worker."""
    train(keeping, name, 1)
    train(keeping, name, 1)
    return name


def train(server: LocalServer, name: str, steps: int) -> np.ndarray:
    weights = np.ones(3, np.float32)
    with optd.connect(server.address, job=name, worker="w") as session:
        optimizer = optd.AdamW({"w": weights}, lr=0.1, session=session)
        optimizer.pull()
        for _ in range(steps):
            optimizer.step({"w": np.ones(3, np.float32)})
        at = session.version
        wait_for(lambda: at in kept(server, name), f"a snapshot of version {at}")
    return weights


def kept(server: LocalServer, name: str) -> list[int]:
    return [each["version"] for each in Optctl(server.address)("checkpoint", "ls", "--job", name, "-ojson").document]


def test_save_show_verify_list_and_remove(optctl: Optctl, job: str, tmp_path: Path):
    path = tmp_path / "runs" / "two"
    saved = optctl("checkpoint", "save", job, str(path))
    assert (saved.code, saved.err) == (0, "")
    assert saved.out.startswith(f"saved {job} at version 2 (") and saved.out.endswith(f" to {path}\n")
    again = optctl("checkpoint", "save", job, str(path))
    assert (again.code, again.err) == (
        1,
        f"optctl: {path} has a checkpoint already, which overwrite=True (--overwrite) replaces; nothing was written\n",
    )
    assert optctl("checkpoint", "save", job, str(path), "--overwrite", "--version", "1").code == 0
    shown, document = optctl.both("checkpoint", "show", str(path))
    facts = dict(line.split(None, 1) for line in shown.lines[:7])
    assert (facts["job"], facts["version"], facts["algorithm"]) == (job, "1", "adamw")
    assert shown.lines[-1].split()[:6] == ["group0", "adamw", "1", "3", "1", "lr=0.1"]
    assert document["groups"][0]["parameters"] == [{"name": "w", "shape": [3], "dtype": "float32", "steps": 1}]
    assert optctl("checkpoint", "verify", str(path)).out.startswith(f"{path} is whole: 3 files, ")
    assert optctl("checkpoint", "save", job, str(tmp_path / "runs" / "later")).code == 0
    listed, document = optctl.both("checkpoint", "ls", str(tmp_path / "runs"))
    assert [line.split()[1:3] for line in listed.lines[1:]] == [[job, "2"], [job, "1"]]
    assert listed.lines[1].endswith("latest") and not listed.lines[2].endswith("latest")
    assert [each["version"] for each in document] == [2, 1]
    refused = optctl("checkpoint", "rm", str(path))
    assert (refused.code, refused.err) == (2, "optctl: there is no terminal to ask on: pass --yes to remove\n")
    assert optctl("checkpoint", "rm", str(path), "--yes").out == f"removed {path}\n"
    assert not path.exists()


def test_damage_is_found(optctl: Optctl, job: str, tmp_path: Path):
    path = tmp_path / "best"
    optctl("checkpoint", "save", job, str(path))
    file = path / "state-small.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = optctl("checkpoint", "verify", str(path))
    assert (found.code, found.err) == (
        1,
        f"optctl: the checkpoint at {path} is damaged: state-small.safetensors: its checksum is wrong\n",
    )
    assert optctl("checkpoint", "restore", str(path), f"{job}-again").code == 1


def test_restore(optctl: Optctl, keeping: LocalServer, job: str, tmp_path: Path):
    path = str(tmp_path / "two")
    optctl("checkpoint", "save", job, path)
    after = train(keeping, job, 1)
    exists = optctl("checkpoint", "restore", path)
    assert (
        exists.code == 1
        and f"job {job!r} exists already; if_exists='replace' (--replace) deletes it first" in exists.err
    )
    copied = optctl("checkpoint", "restore", path, f"{job}-copy")
    assert copied.out == f"restored {job}-copy at version 2 from {path}\n"
    assert np.array_equal(train(keeping, f"{job}-copy", 1), after)
    assert (
        optctl("checkpoint", "restore", path, "--replace", "--yes").out == f"restored {job} at version 2 from {path}\n"
    )
    assert np.array_equal(train(keeping, job, 1), after)
    assert optctl("checkpoint", "restore", path, "--load").out == f"loaded {job} at version 3 from {path}\n"
    assert np.array_equal(train(keeping, job, 1), after)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls"], "give a PATH to list the checkpoints in it, or --job to list the snapshots of a job"),
        (["restore", "x", "--replace", "--load"], "--replace and --load exclude one another"),
        (["restore", "x", "--partial"], "--partial needs --load: otherwise everything is restored"),
        (["verify", "foo://x"], "foo://x cannot be reached: Protocol not known: foo"),
    ],
)
def test_wrong_usage(optctl: Optctl, arguments: list[str], said: str):
    ended = optctl("checkpoint", *arguments)
    assert (ended.code, ended.err) == (2, f"optctl: {said}\n")


def test_what_is_not_there(optctl: Optctl, job: str, tmp_path: Path):
    for arguments, words in (
        (["show", str(tmp_path)], f"there is no checkpoint at {tmp_path}: manifest.json is missing"),
        (["ls", str(tmp_path / "no")], f"there is no checkpoint at {tmp_path / 'no'}: there is no such folder"),
        (["save", "nobody", str(tmp_path / "x")], "no job 'nobody' on this server"),
        (
            ["save", job, str(tmp_path / "x"), "--version", "9"],
            f"the server has no snapshot of version 9 of job '{job}'",
        ),
    ):
        ended = optctl("checkpoint", *arguments)
        assert ended.code == 5 and words in ended.err, ended
    assert not (tmp_path / "x").exists()


def test_rollback(optctl: Optctl, keeping: LocalServer, job: str):
    after = train(keeping, job, 1)
    refused = optctl("rollback", job, "2")
    assert (refused.code, refused.err) == (2, "optctl: there is no terminal to ask on: pass --yes to roll back\n")
    assert optctl("rollback", job, "2", "--yes").out == f"rolled {job} back from version 3 to 2\n"
    assert np.array_equal(train(keeping, job, 1), after)
    unknown = optctl("rollback", job, "8", "-y")
    assert unknown.code == 5 and "no snapshot of version 8" in unknown.err


def test_jobs_show_what_is_durable(optctl: Optctl, job: str):
    shown, document = optctl.both("jobs")
    column = shown.lines[0].split().index("durable")
    assert next(line for line in shown.lines if line.startswith(job)).split()[column] == "2"
    assert next(each for each in document if each["name"] == job)["version"]["durable_version"] == 2
    assert ["durable", "2"] in [line.split() for line in optctl("job", job).lines]
    assert "version 2  durable 2" in optctl("watch", job, "--count", "1").out


# Files of torch


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))


def torch_steps(net: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for number in range(count):
        optimizer.zero_grad()
        net(torch.full((2, 4), 1.0 + number)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("kind", "options"), [("AdamW", {"amsgrad": True}), ("SGD", {"momentum": 0.9}), ("Muon", {})])
def test_torchs_own_optimizer_goes_on_from_an_export(
    optctl: Optctl, keeping: LocalServer, name: str, tmp_path: Path, kind: str, options: dict
):
    net = model() if kind != "Muon" else torch.nn.Linear(4, 3, bias=False)
    optimizer = getattr(optd.torch, kind)(
        net.named_parameters(), lr=0.01, **options, server=keeping.address, job=name, worker="w"
    )
    torch_steps(net, optimizer, 3)
    assert optctl("checkpoint", "save", name, str(tmp_path / "three")).code == 0
    ended = optctl("checkpoint", "export", str(tmp_path / "three"), "--torch", str(tmp_path / "three.pt"))
    assert ended.code == 0, ended.err
    saved = torch.load(tmp_path / "three.pt", weights_only=True)
    theirs = model() if kind != "Muon" else torch.nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(saved["model"])
    plain = getattr(torch.optim, kind)(theirs.named_parameters(), lr=0.01, **options)
    plain.load_state_dict(saved["optimizer"])
    for number in range(2):
        for each, own in ((net, optimizer), (theirs, plain)):
            own.zero_grad()
            each(torch.full((2, 4), 5.0 + number)).square().sum().backward()
            own.step()
    for ours, other in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    optimizer.close()


def test_a_file_of_torch_becomes_a_job(optctl: Optctl, keeping: LocalServer, name: str, tmp_path: Path):
    net = model()
    groups = [{"params": list(net[0].named_parameters()), "lr": 0.1}, {"params": list(net[2].named_parameters("2"))}]
    groups[0]["params"] = [(f"0.{key}", value) for key, value in groups[0]["params"]]
    plain = torch.optim.AdamW(groups, lr=0.01)
    torch_steps(net, plain, 3)
    torch.save({"model": net.state_dict(), "optimizer": plain.state_dict()}, tmp_path / "net.pt")
    path = str(tmp_path / "imported")
    arguments = [
        "checkpoint",
        "import",
        path,
        "--torch",
        str(tmp_path / "net.pt"),
        "--algorithm",
        "adamw",
        "--job",
        name,
    ]
    imported = optctl(*arguments)
    assert imported.code == 0, imported.err
    assert optctl(*arguments).err.endswith("nothing was written\n")
    assert optctl("checkpoint", "restore", path).code == 0
    ours = model()
    own = [{"params": [(f"0.{k}", v) for k, v in ours[0].named_parameters()], "lr": 0.1}]
    own.append({"params": list(ours[2].named_parameters("2"))})
    optimizer = optd.torch.AdamW(own, lr=0.01, server=keeping.address, job=name, worker="w")
    optimizer.pull()
    torch_steps(net, plain, 2)
    torch_steps(ours, optimizer, 2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    for mine, other in zip(ours.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    optimizer.close()


def test_a_file_that_is_none_of_torch_is_refused(optctl: Optctl, tmp_path: Path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    ended = optctl(
        "checkpoint", "import", str(tmp_path / "x"), "--torch", str(tmp_path / "other.pt"), "--algorithm", "adamw"
    )
    assert ended.code == 1
    assert ended.err == f"optctl: {tmp_path}/other.pt must hold a dict with 'model' and 'optimizer'\n"
