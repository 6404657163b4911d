"""`docs/faults.md`: a row for each fault, with the tests of it that there are."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text()
ROWS = {
    int(number): re.findall(r"\[(test_\w+)\]\(\.\./([\w/.]+)\)", tests)
    for number, tests in re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \|([^|]*)\|$", PAGE, re.MULTILINE)
}


def test_there_is_a_row_for_each_fault_with_its_tests():
    assert list(ROWS) == list(range(1, 45))
    assert all(ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_the_tests_of_a_row_exist_and_have_its_number(number: int):
    for name, path in ROWS[number]:
        assert number in [int(found) for found in re.findall(r"(?:^test|_and)_(\d+)(?=_)", name)]
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


def test_all_numbered_tests_are_on_the_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "checks"))
    from faults_page import with_tests

    sys.modules.pop("faults_page")
    assert with_tests(PAGE) == PAGE, "python checks/faults_page.py writes them"
