"""What people read at a prompt: optimizers, and what is missing."""

import subprocess
import sys

import numpy as np
import pytest

import optd
import optd.torch

pytestmark = pytest.mark.slow


@pytest.fixture
def session(server, name):
    with optd.connect(server.address, job=name, worker="w1") as opened:
        yield opened


def test_a_numpy_optimizer_tells_algorithm_job_version_and_groups(session, server, name):
    groups = [{"name": "a", "params": {"w": np.ones((2, 3))}}, {"name": "b", "params": {"x": np.ones(1)}, "lr": 0.5}]
    optimizer = optd.SGD(groups, lr=0.25, session=session)
    optimizer.step([{"w": np.ones((2, 3))}, {"x": np.ones(1)}])
    head, first, second = repr(optimizer).splitlines()
    assert head == f"<optd.SGD of job {name!r} at version 1, worker 'w1', server {server.address}"
    assert first.startswith("  group 'a': 1 parameter, 6 elements; ") and " lr=0.25, " in first
    assert second.startswith("  group 'b': 1 parameter, 1 element; ") and " lr=0.5, " in second
    assert second.endswith(">")


def test_one_that_was_never_registered_has_a_text_too():
    assert repr(object.__new__(optd.Adam)) == "<optd.Adam of no job>"


def test_an_optimizer_by_name_tells_its_algorithm(session):
    text = repr(optd.Optimizer("adamw", {"w": np.ones(3)}, session=session))
    assert text.startswith("<optd.Optimizer 'adamw' of job ")


def test_torch_that_is_missing_is_named_with_the_extra():
    program = "import sys; sys.modules['torch'] = None; import optd.torch"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last == "ImportError: optd.torch needs torch, which is not installed: pip install 'optd[torch]'"


def test_an_import_that_fails_within_torch_is_not_blamed_on_the_extra(tmp_path):
    (tmp_path / "torch.py").write_text("import no_such_module_at_all\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import optd.torch"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in ended.stderr.splitlines()[-1]
