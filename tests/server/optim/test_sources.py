"""What a kernel on disk is known by: the sources that its code comes from, and no others."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optd_server.optim.backends.compiled.sources import digest

MODULES = {
    "caller": "import numpy as np\nimport afar\nfrom other import helper, DEGREE\n\n"
    "def inner(x):\n    return helper(x)\n\n"
    "def fused(x):\n    return inner(np.sqrt(x)) ** DEGREE + afar.far(x)\n",
    "other": "from deep import deeper, DEGREE\n\ndef helper(x):\n    return deeper(x)\n",
    "deep": "DEGREE = 2\n\ndef deeper(x):\n    return x + 1\n",
    "afar": "def far(x):\n    return x\n",
    "unrelated": "def fused(x):\n    return x\n",
}


class Sources:
    """The modules above in a folder, and the digest of what compiles from them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.syspath_prepend(folder)
        for name, text in MODULES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        (self._folder / f"{name}.py").write_text(text)

    def digest(self) -> str | None:
        return digest(self.fused())

    def fused(self) -> Callable[..., Any]:
        for name in MODULES:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("caller").fused  # type: ignore[no-any-return]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Sources(tmp_path, monkeypatch)
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["caller", "other", "deep", "afar"])
def test_a_change_in_a_module_that_is_called_changes_the_digest(sources: Sources, name: str) -> None:
    before = sources.digest()
    assert before is not None
    assert sources.digest() == before
    sources.write(name, MODULES[name] + "\n\ndef more():\n    pass\n")
    assert sources.digest() != before


def test_a_change_elsewhere_does_not(sources: Sources) -> None:
    before = sources.digest()
    sources.write("unrelated", "")
    assert sources.digest() == before


def test_a_number_from_a_module_that_is_not_called_counts(sources: Sources) -> None:
    sources.write("numbers_of_mine", "DEGREE = 2\n")
    sources.write("other", MODULES["other"].replace("deeper, DEGREE", "deeper\nfrom numbers_of_mine import DEGREE"))
    before = sources.digest()
    sources.write("numbers_of_mine", "DEGREE = 30\n")
    sys.modules.pop("numbers_of_mine")
    assert sources.digest() != before


def test_a_function_in_a_closure_counts(sources: Sources) -> None:
    fused = sources.fused()

    def outer() -> Callable[..., Any]:
        def with_fused(x: Any) -> Any:
            return fused(x)

        return with_fused

    before = digest(outer())
    sources.write("deep", MODULES["deep"] + "\n\ndef more():\n    pass\n")
    fused = sources.fused()
    assert digest(outer()) != before


def test_what_was_typed_in_has_no_digest() -> None:
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec("def fused(x):\n    return x\n", names)
    assert digest(names["fused"]) is None
