"""The client's generated code against the server's declarations."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from optd_server.optim.algorithms.registry import BUILT_IN
from optd_server.optim.option import Option, Range

CLIENT = Path(__file__).resolve().parents[2] / "client"


@pytest.fixture
def generation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(CLIENT))
    from generation import export, files

    return lambda algorithms=None: files.stale(files.generated(export.exported(algorithms)))


def changed(**change):
    """The server's algorithms, of which Adam's `lr` is another one."""
    algorithms = {algorithm.name: algorithm for algorithm in BUILT_IN}
    lr, *others = algorithms["adam"].options
    algorithms["adam"] = replace(algorithms["adam"], options=(replace(lr, **change), *others))
    return algorithms


def test_what_is_committed_is_current(generation):
    assert generation() == []


@pytest.mark.parametrize(
    "change", [{"default": 0.002}, {"range": Range(0, 1)}, {"doc": "Pace."}], ids=["default", "range", "doc"]
)
def test_a_change_of_a_declaration_is_found(generation, change):
    found = generation(changed(**change))
    assert found == ["declarations.json", "optd/algorithms/adam.py", "optd/torch/algorithms/adam.py"]


def test_a_new_option_and_an_algorithm_that_is_gone_are_found(generation):
    algorithms = {algorithm.name: algorithm for algorithm in BUILT_IN if algorithm.name != "rprop"}
    lion = algorithms["lion"]
    algorithms["lion"] = replace(lion, options=(*lion.options, Option("pace", "float", 1.0, doc="Pace.")))
    found = generation(algorithms)
    assert {"optd/algorithms/lion.py", "optd/algorithms/rprop.py", "optd/algorithms/__init__.py"} <= set(found)


def test_an_option_of_torchs_that_no_declaration_has_is_refused(generation):
    with pytest.raises(ValueError, match=r"torch\.optim\.Adam takes lr, which the server's 'adam' does not declare"):
        generation(changed(name="pace"))


@pytest.mark.slow
def test_make_check_names_the_command_to_run(tmp_path):
    """On a server whose default of `lr` differs."""
    program = tmp_path / "check.py"
    program.write_text(
        "import dataclasses, runpy, sys\n"
        "from optd_server.optim.algorithms import registry\n"
        "first, *others = registry.BUILT_IN\n"
        "options = (dataclasses.replace(first.options[0], default=0.5), *first.options[1:])\n"
        "registry.BUILT_IN = (dataclasses.replace(first, options=options), *others)\n"
        f"sys.path.insert(0, {str(CLIENT)!r})\n"
        "sys.argv = ['generate.py', '--check']\n"
        f"runpy.run_path({str(CLIENT / 'generate.py')!r}, run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "run `make classes`" in ended.stderr
    assert "optd/algorithms/sgd.py" in ended.stderr
