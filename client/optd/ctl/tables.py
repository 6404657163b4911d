"""Tables that fit the terminal: optional columns are dropped first, then long names are folded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table

from optd.ctl.text import printable

_ANY_WIDTH = 1 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, of one or more lines, and how it behaves."""

    title: str
    number: bool = False
    """Whether it is set flush right, and never broken."""
    whole: bool = False
    """Whether it is never broken."""
    spare: bool = False
    """Whether it may be dropped; the last such column is dropped first."""


@dataclass(frozen=True, slots=True)
class FittingTable:
    """Rows under as many columns as fit the terminal."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    narrow: "FittingTable | None" = None
    """What is shown if the table does not fit."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown = list(range(len(self.columns)))
        spare = [index for index in shown if self.columns[index].spare]
        table = self._built(shown)
        while spare and _width(table, console, options) > options.max_width:
            shown.remove(spare.pop())
            table = self._built(shown)
        if self.narrow is not None and _width(table, console, options) > options.max_width:
            yield self.narrow
        else:
            yield table

    def _built(self, shown: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index in shown:
            column = self.columns[index]
            table.add_column(
                column.title,
                justify="right" if column.number else "left",
                no_wrap=column.number or column.whole,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*[printable(row[index]) for index in shown])
        return table


def table(columns: Iterable[Column], rows: Iterable[Sequence[str]], narrow: FittingTable | None = None) -> FittingTable:
    """A table of texts; `narrow` is shown instead if it does not fit."""
    return FittingTable(tuple(columns), tuple(rows), narrow)


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names on the left, their values on the right."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in rows:
        grid.add_row(name, printable(fact))
    return grid


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    return Measurement.get(console, options.update(width=_ANY_WIDTH), table).maximum
