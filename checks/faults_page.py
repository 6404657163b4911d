"""Write the names of the numbered tests into the table of docs/faults.md.

    python checks/faults_page.py

A test whose name begins with `test_22_` belongs to row 22, and one that begins with `test_3_and_4_` to both rows.
`tests/structure/test_faults_page.py` fails where this has not been run.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
_TEST = re.compile(r"^(?:async )?def (test_(\d+)(?:_and_(\d+))?_\w+)\(", re.MULTILINE)
_ROW = re.compile(r"^(\| (\d+) \| [^|]+ \| [^|]+ \|)[^|]*\|$", re.MULTILINE)


def numbered_tests(folder: Path = ROOT / "tests") -> dict[int, list[tuple[str, str]]]:
    """By row, the names of its tests and the paths of their files, in the order of these."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for name, *numbers in _TEST.findall(path.read_text()):
            for number in filter(None, numbers):
                found.setdefault(int(number), []).append((name, str(path.relative_to(ROOT))))
    return found


def with_tests(page: str) -> str:
    """The page with the tests that there are in the last cell of each row."""
    tests = numbered_tests()

    def row(match: re.Match[str]) -> str:
        links = [f"[{name}](../{path})" for name, path in tests.get(int(match[2]), [])]
        return f"{match[1]} {'<br>'.join(links)} |"

    return _ROW.sub(row, page)


if __name__ == "__main__":
    PAGE.write_text(with_tests(PAGE.read_text()))
