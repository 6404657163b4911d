"""The image, built and run for real: a worker outside trains with the server inside."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import optd

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
OPTCTL = Path(sys.executable).with_name("optctl")
SITE_PACKAGES = "/opt/optd/lib/python3.11/site-packages"


def test_image_says_what_it_is(engine, server_image):
    config = engine.inspect(server_image)["Config"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert config["Labels"]["org.opencontainers.image.title"] == project["name"]
    assert config["Labels"]["org.opencontainers.image.version"] == project["version"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == project["license"]
    assert config["Entrypoint"] == ["optd"]
    assert set(config["Volumes"]) == {"/data"}
    user, group = config["User"].split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_image_holds_no_installer(engine, server_image):
    listing = engine("run", "--rm", "--entrypoint", "ls", server_image, "/opt/optd/lib/python3.11/site-packages")
    assert "optd_server" in listing.split()
    assert not {"pip", "hatchling", "sklearn", "torch"} & set(listing.split())


def test_without_a_secret_the_server_refuses_to_start(engine, server_image):
    refused = engine.run(server_image, options=("--rm",))
    assert refused.returncode not in (0, 125, 126, 127)  # not the engine's own failures
    assert "--insecure" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_worker_outside_trains_and_inspects(server):
    weights = np.ones(4)
    with optd.connect(server.address, job="image", worker="outside", token=server.token) as session:
        optimizer = optd.SGD({"layer.weight": weights}, lr=0.1, session=session)
        for _ in range(3):
            optimizer.step({"layer.weight": np.full(4, 2.0)})
    np.testing.assert_allclose(weights, np.full(4, 0.4), rtol=1e-12)

    environment = os.environ | {"OPTD_SERVER": server.address, "OPTD_TOKEN": server.token}
    listing = subprocess.run(
        [OPTCTL, "-o", "json", "groups", "image"], env=environment, capture_output=True, text=True, check=True
    )
    (group,) = json.loads(listing.stdout)
    assert group["options"]["options"]["lr"] == 0.1
    assert group["max_steps"] == 3


def test_a_wrong_token_is_refused(server):
    environment = os.environ | {"OPTD_SERVER": server.address, "OPTD_TOKEN": "wrong"}
    refused = subprocess.run([OPTCTL, "jobs"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "token" in refused.stderr


def test_optctl_inside_finds_the_server_at_its_port(server):
    assert not server.address.endswith(":50051")
    listing = server.exec("optctl", "-o", "json", "jobs")
    assert (listing.returncode, listing.stderr) == (0, "")
    assert json.loads(listing.stdout) == []


def test_the_health_check_tells_yes_from_no(server):
    assert server.exec(*server.health_check).returncode == 0
    assert server.exec(*server.health_check, options=("--env", "OPTD_PORT=1")).returncode == 1


def test_the_process_is_not_root_and_can_write_to_its_data_only(server):
    assert server.exec("id", "-u").stdout.strip() == "10001"
    assert server.exec("touch", "/data/probe").returncode == 0
    assert server.exec("touch", "/opt/optd/probe").returncode != 0


@pytest.mark.parametrize("signal", ["TERM", "INT"])
def test_a_signal_ends_the_server_in_order(server, signal: str):
    server.engine("kill", "--signal", signal, server.name)
    assert server.engine("wait", server.name).splitlines()[-1] == "0"


def test_a_worker_inside_a_container_trains(engine, server, worker_image, secret):
    options = ("--rm", *secret)
    if engine.inspect(server.name)["HostConfig"]["NetworkMode"] != "host":
        options += ("--network", f"container:{server.name}")
    arguments = ("--server", server.address, "--worker", "inside", "--steps", "20")
    worker = engine.run(worker_image, *arguments, options=options, timeout=120)
    assert worker.returncode == 0, worker.stderr
    assert "version 20" in worker.stdout


SHARES = """
import numpy as np, optd
with optd.connect({address!r}, job="shared", worker="inside", lane="shm") as session:
    optimizer = optd.SGD({{"w": np.ones(100_000, np.float32)}}, lr=0.5, session=session, zero_copy=True)
    optimizer.gradients["w"][:] = 1
    optimizer.step()
    print(session.lane, optimizer.weights["w"][-1])
"""


def test_two_containers_share_memory_where_they_share_dev_shm(engine, server, server_image, secret):
    """As compose.yaml has it; the image of the server has the client too."""
    options = ("--rm", "--entrypoint", "python", *secret, "--ipc", f"container:{server.name}")
    if engine.inspect(server.name)["HostConfig"]["NetworkMode"] != "host":
        options += ("--network", f"container:{server.name}")
    worker = engine.run(server_image, "-c", SHARES.format(address=server.address), options=options, timeout=120)
    assert worker.returncode == 0, worker.stderr
    assert worker.stdout.split() == ["shm", "0.5"]


def test_kernels_are_compiled_in_the_image(engine, server):
    """A job that is created takes them from there, and does not wait for a compiler."""
    kept = server.exec("sh", "-c", "ls -R $OPTD_KERNEL_CACHE")
    assert kept.returncode == 0
    assert ".nbc" in kept.stdout


def test_a_job_outlives_its_container(engine, running, secret, tmp_path, volume):
    token = (tmp_path / "token").read_text()
    options = (*secret, "--volume", f"{volume}:/data", "--env", "OPTD_DURABILITY=log")
    weights = {"layer": np.ones(4, np.float32)}
    gradient = {"layer": np.full(4, 0.5, np.float32)}
    with running(token, *options) as first:
        with optd.connect(first.address, job="kept", worker="w", token=token) as session:
            optimizer = optd.Adam(weights, lr=0.1, session=session)
            for _ in range(3):
                optimizer.step(gradient)
        engine("kill", "--signal", "KILL", first.name)
        engine("rm", "--force", first.name)
    with (
        running(token, *options) as second,
        optd.connect(second.address, job="kept", worker="w", token=token) as session,
    ):
        assert session.info().version.version == 3
        np.testing.assert_array_equal(session.pull()["layer"], weights["layer"])
        again = {"layer": np.zeros(4, np.float32)}
        with pytest.warns(UserWarning, match="goes on with it"):
            optd.Adam(again, lr=0.1, session=session).step(gradient)
        assert session.info().version.version == 4


@pytest.fixture
def token_of_mode(tmp_path: Path):
    """Makes options that mount a token with this mode and owner: users of the host are those of the container."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")

    def make(mode: int, user: int, group: int) -> tuple[str, ...]:
        path = tmp_path / "private-token"
        path.write_text("open-sesame-open-sesame")
        os.chown(path, user, group)
        path.chmod(mode)
        inside = "/run/secrets/optd-token"
        return ("--volume", f"{path}:{inside}:ro", "--env", f"OPTD_TOKEN_FILE={inside}")

    return make


def test_a_token_that_only_another_user_may_read_is_refused(engine, server_image, token_of_mode):
    refused = engine.run(server_image, options=("--rm", *token_of_mode(0o600, 0, 0)))
    assert refused.returncode not in (0, 125, 126, 127)
    assert "token" in refused.stderr
    assert "ermission denied" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(("mode", "user", "group"), [(0o600, 10001, 0), (0o640, 0, 10001)], ids=["owner", "group"])
def test_a_token_that_few_may_read_serves(running, token_of_mode, mode: int, user: int, group: int):
    options = token_of_mode(mode, user, group)
    with running("open-sesame-open-sesame", *options) as server:
        assert [job.name for job in optd.jobs(server=server.address, token=server.token)] == []
