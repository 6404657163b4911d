"""`docs/faults.md`: a row for each fault, and the tests that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text()
ROWS = {
    int(number): (fault, promise, re.findall(r"\[(test_\w+)\]\(\.\./([\w/.]+)\)", tests))
    for number, fault, promise, tests in re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|(.*)\|$", PAGE, re.MULTILINE)
}
WITHOUT_TEST = {15}
"""Its promise is not kept yet: a repeat is known by its number alone."""


def test_there_is_a_row_for_each_fault_with_its_tests():
    assert list(ROWS) == list(range(1, 45))
    assert {number for number, (_, _, tests) in ROWS.items() if not tests} == WITHOUT_TEST


@pytest.mark.parametrize("number", ROWS)
def test_the_tests_of_a_row_exist_and_have_its_number(number: int):
    _, _, tests = ROWS[number]
    for name, path in tests:
        assert number in [int(found) for found in re.findall(r"(?:^test|_and)_(\d+)(?=_)", name)]
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"

