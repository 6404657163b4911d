"""The package of docs/extending.md: written as the guide says, installed, and trained with."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd.local import LocalServer, local
from optd_wire import errors

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
LINES = 40


def blocks() -> dict[str, str]:
    """The guide's files by name."""
    text = GUIDE.read_text()
    return dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package lies once pip has installed it."""
    source, target = tmp_path_factory.mktemp("adabelief"), tmp_path_factory.mktemp("installed")
    for name, content in blocks().items():
        (source / name).write_text(content)
    # What builds it is installed already; nothing is fetched.
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--target"]
    subprocess.run([*command, str(target), str(source)], check=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    return target


@pytest.fixture(scope="module")
def extended(installed: Path) -> Iterator[LocalServer]:
    """A server with that package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]))
        server = local()
    with server:
        yield server


def adabelief(weights: np.ndarray, gradients: list[np.ndarray], lr: float, eps: float = 1e-8) -> np.ndarray:
    """The paper's algorithm 2, without its eps within the average."""
    mean, belief = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        belief = 0.999 * belief + 0.001 * (gradient - mean) ** 2
        corrected = mean / (1 - 0.9**step), belief / (1 - 0.999**step)
        weights = weights - lr * corrected[0] / (np.sqrt(corrected[1]) + eps)
    return weights


def test_the_guide_builds_one_in_few_lines() -> None:
    files = blocks()
    assert files.keys() == {"pyproject.toml", "adabelief.py"}
    assert sum(bool(line.strip()) for content in files.values() for line in content.splitlines()) < LINES


@pytest.mark.slow
def test_it_trains_in_both_faces_with_groups_of_their_own_options(extended: LocalServer, name: str) -> None:
    rng = np.random.default_rng(0)
    start = {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(5)}
    rates = {"w": 0.01, "b": 0.1}
    steps = [{key: rng.standard_normal(array.shape) for key, array in start.items()} for _ in range(20)]
    expected = {key: adabelief(array, [step[key] for step in steps], rates[key]) for key, array in start.items()}

    with optd.connect(extended.address, job=f"{name}-numpy") as session:
        arrays = {key: array.copy() for key, array in start.items()}
        groups: list[dict[str, Any]] = [{"params": {"w": arrays["w"]}}, {"params": {"b": arrays["b"]}, "lr": 0.1}]
        optimizer = optd.Optimizer("adabelief", groups, lr=0.01, session=session)
        for step in steps:
            optimizer.step(step)
        state = optimizer.state_dict()
    with optd.connect(extended.address, job=f"{name}-torch") as session:
        tensors = {key: torch.nn.Parameter(torch.from_numpy(array.copy())) for key, array in start.items()}
        param_groups = [{"params": [tensors["w"]]}, {"params": [tensors["b"]], "lr": 0.1}]
        ours = optd.torch.Optimizer("adabelief", param_groups, lr=0.01, session=session)
        scheduler = torch.optim.lr_scheduler.LambdaLR(ours, lambda _: 1.0)
        for step in steps:
            for key, tensor in tensors.items():
                tensor.grad = torch.from_numpy(step[key])
            ours.step()
            scheduler.step()
        assert list(ours.state_dict()["state"][0]) == ["step", "exp_avg", "exp_avg_var"]

    for key, array in expected.items():
        np.testing.assert_allclose(arrays[key], array, rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(tensors[key].detach().numpy(), arrays[key])
    assert state["state"][1]["step"] == 20
    assert state["param_groups"][1]["lr"] == 0.1


@pytest.mark.slow
def test_it_has_validation_inspection_and_checkpoints(extended: LocalServer, name: str) -> None:
    with optd.connect(extended.address, job=name) as session:
        with pytest.raises(errors.OptionOutOfRange) as caught:
            optd.Optimizer("adabelief", [np.ones(2)], lr=-1, session=session)
        assert str(caught.value) == "adabelief: lr must be in [0, inf), got -1"
        with pytest.raises(errors.UnknownAlgorithm, match="no algorithm 'adabelif'; the nearest is 'adabelief'"):
            optd.torch.Optimizer("adabelif", [torch.ones(2)], session=session)
        optimizer = optd.Optimizer("adabelief", {"w": np.ones(2)}, session=session)
        optimizer.step({"w": np.ones(2)})
        saved = optimizer.state_dict()
        optimizer.step({"w": np.ones(2)})
        optimizer.load_state_dict(saved)
        assert optimizer.state_dict()["state"][0]["step"] == 1
        (report,) = session.parameters("group0")
        assert [field.field for field in report.fields] == ["weights", "gradient", "exp_avg", "exp_avg_var"]
    environment = {**os.environ, "OPTD_SERVER": extended.address}
    command = [sys.executable, "-m", "optd.ctl", "algorithms", "adabelief"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "optd-adabelief 1.0" in shown
    assert "betas" in shown
