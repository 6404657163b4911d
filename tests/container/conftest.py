"""A container engine, the images built with it, and a server that runs in one.

The engine is $OPTD_CONTAINER_ENGINE, which takes docker's arguments; else docker or podman, whichever
can run a container here. Where none can, the tests are left out: never in CI, and never when one was named.
"""

import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = "python:3.11-slim"
READY_SECONDS = 30


@dataclass(frozen=True)
class Engine:
    program: str

    def try_(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [self.program, *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)

    def __call__(self, *args: str, timeout: float = 60) -> str:
        done = self.try_(*args, timeout=timeout)
        assert done.returncode == 0, f"{self.program} {' '.join(args)}: {done.returncode}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def build(self, target: str) -> str:
        tag = f"optd-test-{target}:{uuid.uuid4().hex[:8]}"
        self("build", "--target", target, "-t", tag, "-f", "docker/Dockerfile", ".", timeout=800)
        return tag

    def run(
        self, image: str, *args: str, options: tuple[str, ...] = (), timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a container as compose.yaml does: with nothing to write to and nothing to gain."""
        hardened = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        return self.try_("run", *hardened, *options, image, *args, timeout=timeout)

    def inspect(self, name: str) -> dict[str, Any]:
        return json.loads(self("inspect", name))[0]


@dataclass(frozen=True)
class Container:
    """A running server: its name, its address as seen from outside, and the token that it asks for."""

    engine: Engine
    name: str
    address: str
    token: str

    def exec(self, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return self.engine.try_("exec", *options, self.name, *command)

    @property
    def health_check(self) -> tuple[str, ...]:
        """The command that the image declares."""
        form, command = self.engine.inspect(self.name)["Config"]["Healthcheck"]["Test"]
        assert form == "CMD-SHELL"
        return ("sh", "-c", command)


def find_engine() -> Engine | str:
    """An engine that runs containers, or why there is none."""
    named = os.environ.get("OPTD_CONTAINER_ENGINE")
    reasons = []
    for program in [named] if named else ["docker", "podman"]:
        try:
            probe = Engine(program).try_("run", "--rm", BASE, "true", timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{program}: {error}")
            continue
        if probe.returncode == 0:
            return Engine(program)
        reasons.append(f"{program}: {(probe.stderr.strip() or 'no message').splitlines()[0]}")
    return "no container engine works here: " + "; ".join(reasons)


@pytest.fixture(scope="session")
def engine() -> Engine:
    found = find_engine()
    if isinstance(found, Engine):
        return found
    if os.environ.get("CI") or os.environ.get("OPTD_CONTAINER_ENGINE"):
        pytest.fail(found)
    pytest.skip(found)


@pytest.fixture(scope="session")
def server_image(engine: Engine) -> Iterator[str]:
    tag = engine.build("server")
    yield tag
    engine("rmi", tag)


@pytest.fixture(scope="session")
def worker_image(engine: Engine) -> Iterator[str]:
    tag = engine.build("demo")
    yield tag
    engine("rmi", tag)


@pytest.fixture
def secret(tmp_path: Path) -> tuple[str, ...]:
    """Options that give a container the token `tmp_path / "token"`."""
    path = tmp_path / "token"
    path.write_text(uuid.uuid4().hex)
    path.chmod(0o644)  # the container's user is another one
    inside = "/run/secrets/optd-token"
    return ("--volume", f"{path}:{inside}:ro", "--env", f"OPTD_TOKEN_FILE={inside}")


@contextmanager
def _running(engine: Engine, image: str, token: str, *options: str) -> Iterator[Container]:
    """A server with these options of `docker run`, ready; it ends with the block, and so do volumes without a name."""
    # One port inside and outside, so that an engine which only has the host's network serves as well.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = f"optd-test-{uuid.uuid4().hex[:8]}"
    network = ("--publish", f"127.0.0.1:{port}:{port}", "--env", f"OPTD_PORT={port}", "--ipc", "shareable")
    container = Container(engine, name, f"127.0.0.1:{port}", token)
    try:
        started = engine.run(image, options=("--detach", "--name", name, *network, *options))
        assert started.returncode == 0, started.stderr
        wait_until_ready(container)
        yield container
    finally:
        engine.try_("rm", "--force", "--volumes", name)


@pytest.fixture
def running(engine: Engine, server_image: str) -> Callable[..., AbstractContextManager[Container]]:
    """Makes a server, given its token and options of `docker run`: `with running(token, *options) as server`."""
    return partial(_running, engine, server_image)


@pytest.fixture
def server(
    running: Callable[..., AbstractContextManager[Container]], secret: tuple[str, ...], tmp_path: Path
) -> Iterator[Container]:
    with running((tmp_path / "token").read_text(), *secret) as container:
        yield container


@pytest.fixture
def volume(engine: Engine) -> Iterator[str]:
    """The name of a volume that outlives containers."""
    name = f"optd-test-{uuid.uuid4().hex[:8]}"
    engine("volume", "create", name)
    yield name
    engine("volume", "rm", "--force", name)


def wait_until_ready(container: Container) -> None:
    """Returns once the image's own health check says yes."""
    deadline = time.monotonic() + READY_SECONDS
    while container.exec(*container.health_check).returncode != 0:
        log = container.engine.try_("logs", container.name)
        assert time.monotonic() < deadline, f"not ready after {READY_SECONDS} s:\n{log.stdout}{log.stderr}"
        time.sleep(0.2)
