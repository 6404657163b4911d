"""The command line of `make bench`."""

import argparse
import shlex
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from bench import machine, report
from bench.measure import Result, run
from bench.row import Row
from bench.rows import ROWS
from bench.sizes import FULL, SIZES, Size

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
REPEAT = {"full": 9, "tiny": 2}
WIDE = 240
"""Columns of a table that goes into a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; returns the exit code: 1 where a row failed or was wrong, whatever the figures are."""
    given = _parser().parse_args(arguments)
    size: Size = SIZES[given.size]
    rows = [row for row in ROWS if _matches(_title(row, size), given.only)]
    if given.list:
        print(*[_title(row, size) for row in rows], sep="\n")
        return 0
    if not rows:
        print(f"no row matches {given.only}; --list shows them")
        return 2
    results = _run(rows, size, given.repeat or REPEAT[size.name])
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(report.table(results, size))
    facts = machine.facts()
    for name, fact in facts.items():
        console.print(f"{name}: {fact}")
    if given.write if given.write is not None else size is FULL and given.only is None:
        command = "make bench" + _arguments(given)
        report.write(DOCUMENT, report.section(results, size, command, facts))
        console.print(f"written to {DOCUMENT}")
    return 1 if any(result.failed for result in results) else 0


def _run(rows: Sequence[Row], size: Size, repeat: int) -> list[Result]:
    """One row after the other, with a line that says where it is."""
    results = []
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    with console.status("") as status:
        for number, row in enumerate(rows, 1):
            where = f"{number}/{len(rows)} {_title(row, size)}"
            result = run(row, size, repeat, lambda what, where=where: status.update(f"{where}: {what}"))
            results.append(result)
            if not console.is_terminal:
                ratio = result.problem or (f"ratio {result.ratio:.2f}" if result.ratio is not None else "done")
                console.print(f"{where}: {ratio}")
    return results


def _title(row: Row, size: Size) -> str:
    return f"{row.title(size)} / {row.beside(size)}"


def _matches(title: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch(title.lower(), f"*{pattern.lower()}*")


def _arguments(given: argparse.Namespace) -> str:
    """What else was said, to run the same again."""
    words = []
    if given.size != FULL.name:
        words += ["--size", given.size]
    if given.only is not None:
        words += ["--only", given.only]
    if given.repeat is not None:
        words += ["--repeat", str(given.repeat)]
    return f" ARGS={shlex.quote(shlex.join(words))}" if words else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description="How fast optd is beside what else one would use.")
    parser.add_argument("--size", choices=SIZES, default=FULL.name, help="tiny only proves that every row runs")
    parser.add_argument("--only", metavar="PATTERN", help="rows whose name contains this; * stands for anything")
    parser.add_argument("--repeat", type=_positive, metavar="N", help=f"samples of each side; else {REPEAT}")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help="put the results into docs/benchmarks.md; left out, only if all rows were measured in full size",
    )
    return parser


def _positive(given: str) -> int:
    if (number := int(given)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
