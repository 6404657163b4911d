"""The worker in `examples/node`, which knows nothing of optd but the .proto files, against a server."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from contract.plain import Plain
from e2e.programs import running

import optd
import optd_wire
from optd.local import LocalServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"
INSTALL_SECONDS = 240
RUN_SECONDS = 60
pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 2 * RUN_SECONDS)]
LINE = re.compile(r"version (\d+)  loss ([\d.]+)(?:  slope (\S+)  intercept (\S+))?")


def unusable(reason: str) -> None:
    """Leaves the test out, with the reason; in CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        unusable("neither node nor npm is here" if not shutil.which("node") else "npm is not here")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", ".npmrc", "train.mjs"):
        shutil.copy(EXAMPLE / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        unusable(f"npm ci: {error}")
    if done.returncode != 0:
        unusable(f"npm ci: {done.stderr.strip()[-2000:]}")
    return folder


def start(example: Path, address: str, job: str, *flags: str, token: str = "") -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
    if token:
        environment["OPTD_TOKEN"] = token
    command = ["node", "train.mjs", "--server", address, "--job", job, "--proto", str(optd_wire.PROTO_DIR), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=example, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(example: Path, address: str, job: str, *flags: str, token: str = "") -> tuple[int, str, str]:
    process = start(example, address, job, *flags, token=token)
    try:
        out, err = process.communicate(timeout=RUN_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def measured() -> tuple[np.ndarray, np.ndarray]:
    """The data of the example: inputs and distances."""
    text = (EXAMPLE / "train.mjs").read_text()
    found = [re.search(rf"const {name} = \[([^]]*)\]", text) for name in ("SPEEDS", "DISTANCES")]
    speeds, distances = (np.array(list(map(float, match[1].split(",")))) for match in found if match)
    return (speeds - 15) / 5, distances


def test_it_finds_the_line_of_least_squares(example: Path, server: LocalServer, name: str) -> None:
    status, out, err = run(example, server.address, name)
    assert (status, err) == (0, "")
    lines = [LINE.fullmatch(line) for line in out.splitlines()]
    assert all(lines), out
    losses = [float(line[2]) for line in lines if line]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 5
    inputs, distances = measured()
    best = np.polyfit(inputs, distances, 1)
    last = lines[-1]
    assert last is not None
    np.testing.assert_allclose([float(last[3]), float(last[4])], best, rtol=1e-3)

    with optd.connect(server.address, job=name, worker="watcher") as session:
        info = session.info()
        assert (info.algorithm, info.version.version) == ("adam", 300)
        weights = session.pull()
        assert [weights[key].item() for key in ("slope", "intercept")] == [float(last[3]), float(last[4])]
        (worker,) = session.workers()
        assert (worker.name, worker.active, worker.pushes) == ("node", False, 300)
    # A second run goes on with the job.
    status, out, _ = run(example, server.address, name, "--steps", "10")
    assert status == 0
    assert out.startswith("version 300 ")


def test_it_joins_again_when_its_name_is_taken_over(
    example: Path, server: LocalServer, name: str, plain: Plain
) -> None:
    steps = 1500
    process = start(example, server.address, name, "--steps", str(steps))
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("version 0 ")
        epoch = plain.join(name, "node")
        out, err = process.communicate(timeout=RUN_SECONDS)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert f"STALE_EPOCH: joined again with epoch {epoch + 1}" in out
    assert f"version {steps}  loss 227.07" in out


def test_it_says_the_reason_of_a_refusal(example: Path, server: LocalServer, name: str) -> None:
    status, out, err = run(example, server.address, name, "--algorithm", "adan")
    assert (status, out) == (1, "")
    assert err == "UNKNOWN_ALGORITHM: no algorithm 'adan'; the nearest is 'adam'\n"


def test_it_shows_its_token(example: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "token"
    secret.write_text("open-sesame-open-sesame")
    secret.chmod(0o600)
    with running(tmp_path, "--token-file", str(secret)) as guarded:
        status, _, err = run(example, guarded.address, name)
        assert status == 1
        assert err.startswith("MISSING_TOKEN: this server wants a token")
        status, out, _ = run(example, guarded.address, name, token="open-sesame-open-sesame")
        assert (status, out.splitlines()[0]) == (0, "version 0  loss 2498.060")
