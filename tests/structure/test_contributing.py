"""CONTRIBUTING.md is true: its paths exist, its tables name what the files have, and no make target is missing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BASES = (ROOT, ROOT / "client" / "optd", ROOT / "server" / "optd_server", ROOT / "proto")
"""The folders that its paths start from."""
TREE = re.search(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))
PATHS = sorted(
    {span for span in SPANS if re.fullmatch(r"\.?[\w.-]+(?:/[\w.-]+)*/?", span) and re.search(r"/|\.py$", span)}
)
HOPS = re.findall(r"^\| `([\w/]+\.py)` \| (.*) \|$", TEXT, re.MULTILINE)


def found(path: str) -> list[Path]:
    return [base / path for base in BASES if (base / path).exists()]


def in_the_tree() -> Iterator[str]:
    """The paths of the tree. Its lines are indented below the folder that they are in."""
    assert TREE is not None
    folders: list[str] = []
    for line in TREE[1].splitlines():
        indent, names = len(line) - len(line.lstrip()), re.split(r" {2,}", line.strip())[0].split()
        folders = [*folders[: indent // 2]]
        for name in names:
            yield "".join([*folders, name])
        folders.append(names[-1])


@pytest.mark.parametrize("path", PATHS)
def test_a_path_exists(path: str):
    assert found(path) != []


@pytest.mark.parametrize("path", list(in_the_tree()))
def test_a_path_of_the_tree_exists(path: str):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("path", "text"), HOPS, ids=[path for path, _ in HOPS])
def test_a_file_has_what_the_walk_names(path: str, text: str):
    (file,) = found(path)
    own = file.read_text()
    named = [span for span in re.findall(r"`(\w+)`", text) if span not in ("zero_copy", "optd", "param_groups", "shm")]
    assert [name for name in named if re.search(rf"\b{name}\b", own) is None] == []


def test_the_walk_is_there():
    assert len(HOPS) > 40


def test_all_make_targets_are_in_the_table():
    listed = re.findall(r"^\| `make ([a-z-]+)` \|", TEXT, re.MULTILINE)
    described = re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(described)
