"""The check of the structure finds what it says, and no more; on small trees, whose files hold what the table says."""

import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from checks import structure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def package() -> Iterator[str]:
    """A package name that no other test has, as Python remembers what it has found."""
    name = f"fake_{uuid.uuid4().hex}"
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def found(files: Mapping[str, str], package: str, folder: Path) -> list[str]:
    """The circles of a package with these files, by path from its folder; `PKG` in them is its name."""
    texts = {"__init__.py": "", **files}
    for name, text in texts.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text.replace("PKG", package))
    return [text.replace(package, "PKG") for text in structure.import_circles(package, folder)]


CLEAN = {
    "layers": {"a.py": "import PKG.b", "b.py": "import PKG.c", "c.py": ""},
    "two ways to one file": {"a.py": "import PKG.b, PKG.c", "b.py": "import PKG.d", "c.py": "import PKG.d", "d.py": ""},
    "a folder between two files of its parent": {
        "apply.py": "from PKG.step import run",
        "step/run.py": "from PKG.state import x",
        "state.py": "",
    },
    "a folder that re-exports its files": {
        "sub/__init__.py": "from PKG.sub.a import x\nfrom PKG.sub.b import y",
        "sub/a.py": "from PKG.sub.b import y",
        "sub/b.py": "",
        "user.py": "from PKG.sub import x",
    },
    "a subfolder that imports its parent's __init__": {"__init__.py": "x = 1", "sub/a.py": "from PKG import x"},
    "an import of itself by name in a text": {"a.py": "'import PKG.b'", "b.py": "import PKG.a"},
}


@pytest.mark.parametrize("files", CLEAN.values(), ids=CLEAN)
def test_no_circle(files: dict[str, str], package: str, tmp_path: Path):
    assert found(files, package, tmp_path) == []


HIDDEN = {
    "plain": "from PKG import a",
    "under TYPE_CHECKING": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PKG import a",
    "in a function": "def f():\n    from PKG import a",
    "relative": "from . import a",
    "in an else branch": "try:\n    import json\nexcept ImportError:\n    import PKG.a",
}


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_a_circle_of_files_counts_imports_wherever_they_stand(text: str, package: str, tmp_path: Path):
    (told,) = found({"a.py": "\nimport PKG.b", "b.py": text, "c.py": "import PKG.a"}, package, tmp_path)
    lines = told.splitlines()
    assert lines[0] == "PKG: import circle of files: PKG.a -> PKG.b -> PKG.a"
    assert lines[1] == "    PKG.a, line 2: import PKG.b"
    assert lines[2].startswith("    PKG.b, line ")
    assert len(lines) == 3


def test_the_shortest_circle_of_many_is_told(package: str, tmp_path: Path):
    files = {"a.py": "import PKG.b", "b.py": "import PKG.c", "c.py": "import PKG.d", "d.py": "import PKG.a, PKG.c"}
    (told,) = found(files, package, tmp_path)
    assert told.startswith("PKG: import circle of files: PKG.c -> PKG.d -> PKG.c\n")


def test_two_circles_apart_are_both_told(package: str, tmp_path: Path):
    files = {"a.py": "import PKG.b", "b.py": "import PKG.a, PKG.c", "c.py": "import PKG.d", "d.py": "import PKG.c"}
    assert len(found(files, package, tmp_path)) == 2


def test_a_circle_of_an_init_and_its_file(package: str, tmp_path: Path):
    (told,) = found({"sub/__init__.py": "from PKG.sub.a import x", "sub/a.py": "import PKG.sub"}, package, tmp_path)
    assert told.startswith("PKG: import circle of files: PKG.sub -> PKG.sub.a -> PKG.sub\n")


FOLDERS = {
    "two folders": (
        {"m/a.py": "import PKG.n.b", "n/b.py": "", "n/c.py": "import PKG.m.d", "m/d.py": ""},
        ["PKG.m -> PKG.n -> PKG.m", "PKG.m.a, line 1: import PKG.n.b", "PKG.n.c, line 1: import PKG.m.d"],
    ),
    "a folder and a file beside it": (
        {"m/a.py": "import PKG.f", "f.py": "from PKG.m import b", "m/b.py": ""},
        ["PKG.m -> PKG.f -> PKG.m", "PKG.m.a, line 1: import PKG.f", "PKG.f, line 1: from PKG.m import b"],
    ),
    "folders in a folder": (
        {
            "x/__init__.py": "",
            "x/m/a.py": "import PKG.x.n.b",
            "x/n/b.py": "",
            "x/n/c.py": "import PKG.x.m.d",
            "x/m/d.py": "",
        },
        ["PKG.x.m -> PKG.x.n -> PKG.x.m", "PKG.x.m.a, line 1: import PKG.x.n.b", "PKG.x.n.c, line 1: import PKG.x.m.d"],
    ),
    "a package's __init__ and its folder": (
        {"__init__.py": "import PKG.m.a", "m/a.py": "", "m/b.py": "from PKG import a"},
        ["PKG.m -> PKG -> PKG.m", "PKG.m.b, line 1: from PKG import a", "PKG, line 1: import PKG.m.a"],
    ),
}


@pytest.mark.parametrize(("files", "lines"), FOLDERS.values(), ids=FOLDERS)
def test_a_circle_of_folders_without_one_of_files(
    files: dict[str, str], lines: list[str], package: str, tmp_path: Path
):
    (told,) = found(files, package, tmp_path)
    path, *imports = lines
    assert told.splitlines() == [f"PKG: import circle of folders: {path}", *(f"    {line}" for line in imports)]


def test_a_file_that_the_graph_leaves_out_is_told(package: str, tmp_path: Path):
    (told,) = found({"x/m/a.py": ""}, package, tmp_path)[:1]
    assert told == "PKG.x.m: not seen, as a folder above it has no __init__.py"


def test_long_files(tmp_path: Path):
    files = {"a.py": 400, "b.py": 401, "sub/c.py": 500, "v1/d_pb2.py": 900, "e.txt": 900}
    for name, lines in files.items():
        path = tmp_path / "proto" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" * lines)
    assert list(structure.long_files(tmp_path, "proto")) == [
        ("proto/b.py", "proto/b.py: 401 lines, at most 400 are allowed: split it by topic"),
        ("proto/sub/c.py", "proto/sub/c.py: 500 lines, at most 400 are allowed: split it by topic"),
    ]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> str:
    """A project of one package, with a circle, and one file that is too long; returns the package's name."""
    found({"a.py": "import PKG.b", "b.py": "import PKG.a", "long.py": "\n" * 401}, package, tmp_path / "src")
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    monkeypatch.setattr(structure, "PACKAGES", {package: "src"})
    monkeypatch.setattr(structure, "FOLDERS", ("src",))
    return package


def test_an_exemption_counts_until_it_is_not_needed(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    long = f"src/{small}/long.py"
    monkeypatch.setattr(structure, "EXEMPT", {})
    assert structure.main([]) == 1
    told = capsys.readouterr().err
    assert f"{long}: 401 lines" in told
    assert f"{small}: import circle of files" in told
    monkeypatch.setattr(structure, "EXEMPT", {small: "why", long: "why"})
    assert structure.main([]) == 0
    monkeypatch.setattr(structure, "EXEMPT", {small: "why", long: "why", "src/gone.py": "why"})
    assert structure.main([]) == 1
    assert capsys.readouterr().err == "src/gone.py: clean now, remove it from EXEMPT in checks/structure.py\n"


def test_what_is_named_is_checked_whatever_is_exempt(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(structure, "EXEMPT", {small: "why"})
    assert structure.main([small]) == 1
    assert "import circle" in capsys.readouterr().err
    assert structure.main(["nothing"]) == 2
    assert capsys.readouterr().err == f"no package or folder 'nothing'; there are {small}, src\n"


def test_the_wire_is_clean(capsys: pytest.CaptureFixture[str]):
    assert structure.main(["optd_wire", "proto"]) == 0, capsys.readouterr().err


def test_every_exemption_is_of_something_that_is_checked():
    assert all(subject in structure.PACKAGES or (ROOT / subject).is_file() for subject in structure.EXEMPT)
