"""Results for people: a table on the terminal, and the generated section of docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from bench.measure import Result, Samples
from bench.row import Unit
from bench.sizes import FULL, Size

BEGIN = "<!-- begin: written by `make bench` -->"
END = "<!-- end: written by `make bench` -->"
NONE = "-"
HEADINGS = ("row", "optd", "reference", "of the reference", "ratio", "aim", "met")
NUMBERS = {"optd", "of the reference", "ratio"}


def table(results: Sequence[Result], size: Size) -> Table:
    """Medians, with quartiles in brackets."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in HEADINGS:
        shown.add_column(heading, justify="right" if heading in NUMBERS else "left", overflow="fold")
    for result in results:
        shown.add_row(*cells(result, size), style="red" if result.failed else None)
    return shown


def cells(result: Result, size: Size) -> list[str]:
    """A result under HEADINGS."""
    row = result.row
    if result.problem:
        return [row.title(size), result.problem, row.beside(size), NONE, NONE, _aim(result), NONE]
    assert result.ours is not None
    return [
        row.title(size),
        _samples(result.ours, row.unit),
        row.beside(size),
        NONE if result.reference is None else _samples(result.reference, row.unit),
        NONE if result.ratio is None else f"{result.ratio:.2f}",
        _aim(result),
        {True: "yes", False: "NO", None: NONE}[result.met if size is FULL else None],
    ]


def _aim(result: Result) -> str:
    if result.row.aim is None:
        return NONE
    return f"{'at most' if result.row.better == 'less' else 'at least'} {result.row.aim:g}"


def _samples(samples: Samples, unit: Unit) -> str:
    low, high = samples.quartiles
    spread = f" ({unit.show(low)} .. {unit.show(high)})" if len(samples.values) > 1 else ""
    return f"{unit.show(samples.median)}{spread} {unit.name}"


def section(results: Sequence[Result], size: Size, command: str, facts: Mapping[str, str]) -> str:
    """What stands between the markers, as Markdown."""
    return "\n".join(
        [
            f"`{command}`",
            "",
            *[f"- {name}: {fact}" for name, fact in facts.items()],
            "",
            _line(HEADINGS),
            _line(["--:" if heading in NUMBERS else "---" for heading in HEADINGS]),
            *[_line(cells(result, size)) for result in results],
        ]
    )


def _line(texts: Sequence[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"


def write(file: Path, content: str) -> None:
    """Puts a section between the file's markers; all else stays as it is. Raises `ValueError` where they are not."""
    text = file.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} must have the lines {BEGIN!r} and {END!r}")
    file.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}")
