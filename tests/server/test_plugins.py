"""Algorithms of other packages, as their entry points are found when a server starts."""

import dataclasses
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.server.optim.backends import BACKENDS

from optd_server import plugins
from optd_server.extending import Elementwise, StateField
from optd_server.optim.algorithms import registry
from optd_server.optim.algorithms.adam import ADAM
from optd_server.optim.algorithms.lbfgs import LBFGS
from optd_server.optim.algorithms.muon import MUON
from optd_server.optim.step import SegmentState, apply

MINE = dataclasses.replace(ADAM, name="mine")


class Nothing(NamedTuple):
    """Coefficients of an algorithm that has none."""

    nothing: float


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
    "a state that is not its own": (
        dataclasses.replace(MINE, state=(*MINE.state, StateField("weights"))),
        "mine: the state 'weights' is taken: it means something to every group",
    ),
    "an option that is not its own": (
        dataclasses.replace(MINE, options=(*MINE.options, dataclasses.replace(ADAM.options[0], name="clip_norm"))),
        "mine: the option 'clip_norm' is taken: it means something to every group",
    ),
    "a state with a strange name": (
        dataclasses.replace(MINE, state=(*MINE.state, StateField("old.0"))),
        "mine: the state must be 1 to 64 letters, digits and _, got 'old.0'",
    ),
}


@pytest.mark.parametrize(("algorithm", "says"), BAD.values(), ids=BAD)
def test_what_does_not_work_is_named_with_its_package(algorithm: Any, says: str) -> None:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load([point(algorithm)])
    assert str(caught.value).startswith("optimizer 'mine' of package somebody: ")
    assert says in str(caught.value)
    assert registry.find("mine") is None


def test_what_a_compiler_cannot_take_is_refused_where_it_is_declared() -> None:
    more = tuple(StateField(f"more{i}") for i in range(5))
    with pytest.raises(ValueError, match=r"mine must have at most 6 fields that are not scalars, got 8, or no fused"):
        dataclasses.replace(MINE, state=(*MINE.state, *more), fused=ADAM.fused)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 6])
def test_a_kernel_may_have_as_many_fields_as_it_says(count: int) -> None:
    """Which numba compiles, and gives the numbers of numpy."""
    fields = "".join(f"\n        state[{field}][i] = gradient[i]" for field in range(count))
    body = f"    for i in range(out.size):{fields}\n        out[i] = weights[i] - gradient[i]"
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(f"def fused(c, fresh, weights, gradient, out, state):\n{body}", namespace)

    def update(_: Any, block: Any) -> None:
        for field in block.state.values():
            field[:] = block.gradient
        np.subtract(block.weights, block.gradient, out=block.out)

    names = [f"field{i}" for i in range(count)]
    algorithm = Elementwise(
        name=f"fields{count}",
        title="Fields",
        doc="A field for each number.",
        options=(),
        state=tuple(map(StateField, names)),
        coefficients=lambda _options, _step: Nothing(0.0),
        update=update,
        fused=namespace["fused"],
    )
    gradient = np.arange(5, dtype=np.float32)
    for backend in BACKENDS.values():
        segment, out = SegmentState([5], np.float32), np.empty(5, np.float32)
        apply(algorithm, [{}], segment, weights=np.ones(5, np.float32), gradient=gradient, out=out, backend=backend)
        assert out.tolist() == (1 - gradient).tolist()
        assert all(segment.state[name].tolist() == gradient.tolist() for name in names)


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
