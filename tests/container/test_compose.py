"""docker/compose.yaml says what it promises; no engine needed."""

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

COMPOSE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
WORKERS = sorted(SERVICES.keys() - {"server"})


def test_there_are_a_server_and_two_workers():
    assert WORKERS == ["worker-1", "worker-2"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_gets_the_token_as_a_secret(name: str):
    (secret,) = SERVICES[name]["secrets"]
    assert SERVICES[name]["environment"] == {"OPTD_TOKEN_FILE": f"/run/secrets/{secret}"}
    assert "file" in yaml.safe_load(COMPOSE.read_text())["secrets"][secret]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_built_from_a_stage_that_exists(name: str):
    build = SERVICES[name]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    dockerfile = (context / build["dockerfile"]).read_text()
    assert f" AS {build['target']}\n" in dockerfile


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_waits_for_a_healthy_server(name: str):
    assert SERVICES[name]["depends_on"] == {"server": {"condition": "service_healthy"}}


@pytest.mark.parametrize(("name", "worker", "shard"), [("worker-1", "w1", "1/2"), ("worker-2", "w2", "2/2")])
def test_workers_share_one_server_and_the_data(name: str, worker: str, shard: str):
    command = SERVICES[name]["command"]
    assert command == ["--server", "server:50051", "--worker", worker, "--shard", shard, "--sync"]


def test_the_server_is_published_on_loopback_only():
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["server"]["ports"])


def test_jobs_are_in_a_volume_that_outlives_containers():
    (mount,) = SERVICES["server"]["volumes"]
    volume, folder = mount.split(":")
    assert volume in yaml.safe_load(COMPOSE.read_text())["volumes"]
    dockerfile = COMPOSE.with_name("Dockerfile").read_text()
    assert f"OPTD_DATA_DIR={folder}\n" in dockerfile
    assert f"\nVOLUME {folder}\n" in dockerfile


def test_workers_have_the_servers_dev_shm():
    assert SERVICES["server"]["ipc"] == "shareable"
    assert {SERVICES[worker]["ipc"] for worker in WORKERS} == {"service:server"}
