"""Algorithms of other packages, as their entry points are found when a server starts."""

import dataclasses
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optd_server import plugins
from optd_server.extending import StateField
from optd_server.optim.algorithms import registry
from optd_server.optim.algorithms.adam import ADAM
from optd_server.optim.algorithms.lbfgs import LBFGS
from optd_server.optim.algorithms.muon import MUON

MINE = dataclasses.replace(ADAM, name="mine")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    known, packages = dict(registry._known), dict(registry._packages)
    yield
    sys.modules.pop("somebody", None)
    for mapping, before in ((registry._known, known), (registry._packages, packages)):
        mapping.clear()
        mapping.update(before)  # type: ignore[attr-defined]


def point(algorithm: Any, name: str = "mine") -> EntryPoint:
    module = types.ModuleType("somebody")
    module.THEIRS = algorithm  # type: ignore[attr-defined]
    sys.modules["somebody"] = module
    return EntryPoint(name=name, value="somebody:THEIRS", group=plugins.GROUP)


@pytest.mark.parametrize(
    "algorithm",
    [MINE, dataclasses.replace(MUON, name="mine"), dataclasses.replace(LBFGS, name="mine")],
    ids=["elementwise", "parameterwise", "iterative"],
)
def test_an_algorithm_is_registered_with_its_package(algorithm: Any) -> None:
    assert plugins.load([point(algorithm)]) == ("mine",)
    assert registry.find("mine") is algorithm
    assert registry.package_of("mine") == "somebody"
    assert registry.package_of("adam") == ""


def fails(*_: Any) -> None:
    raise RuntimeError("out of ideas")


def gives_nan(_: Any, block: Any) -> None:
    block.out.fill(np.nan)


BAD = {
    "no algorithm": ("adam", "must be an Elementwise, Parameterwise or Iterative algorithm, got <class 'str'>"),
    "another name": (ADAM, "somebody:THEIRS must have the entry point's name, got 'adam'"),
    "a step that fails": (dataclasses.replace(MINE, update=fails), "RuntimeError: out of ideas"),
    "a step that gives NaN": (dataclasses.replace(MINE, update=gives_nan), "weights that are not finite: [nan"),
    "a bad default": (
        dataclasses.replace(MINE, options=(dataclasses.replace(ADAM.options[0], default=-1.0), *ADAM.options[1:])),
        "mine: the default of lr must be in [0, inf), got -1",
    ),
    "a state twice": (
        dataclasses.replace(MINE, state=(*MINE.state, StateField("exp_avg"))),
        "the state 'exp_avg' twice",
    ),
}


@pytest.mark.parametrize(("algorithm", "says"), BAD.values(), ids=BAD)
def test_what_does_not_work_is_named_with_its_package(algorithm: Any, says: str) -> None:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load([point(algorithm)])
    assert str(caught.value).startswith("optimizer 'mine' of package somebody: ")
    assert says in str(caught.value)
    assert registry.find("mine") is None


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(plugins.PluginError, match="there is an algorithm 'adam' already, of optd itself"):
        plugins.load([point(ADAM, "adam")])
    plugins.load([point(MINE)])
    with pytest.raises(plugins.PluginError, match="there is an algorithm 'mine' already, of somebody"):
        plugins.load([point(MINE)])


@pytest.mark.parametrize("name", ["", "Mine", "a b", "9lives", "x" * 65])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="its name must be 1 to 64 of a-z"):
        registry.register(dataclasses.replace(ADAM, name=name))


def test_a_server_does_not_start_without_an_algorithm_that_was_installed(tmp_path: Path) -> None:
    information = tmp_path / "broken-2.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.1\n")
    (information / "entry_points.txt").write_text("[optd.optimizers]\nmine = nowhere:MINE\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "optd_server", "--port", "0"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "optd: optimizer 'mine' of package broken 2.1: ModuleNotFoundError: No module named 'nowhere'"
    ]
