"""Standard output: one JSON document, or what people read."""

import os
import sys

import typer
from rich.console import Console, RenderableType

from optd.ctl.exits import Exit
from optd.ctl.text import printable

# Where nobody looks at a terminal, lines are as long as they are: folded names are no use to grep.
_ENDLESS = 10_000


def console() -> Console:
    """Standard output for people. Text is taken literally: no markup, no emoji, no guessed colours."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _ENDLESS
    return Console(markup=False, emoji=False, highlight=False, width=width)


def show(*views: RenderableType) -> None:
    """Prints views for people, one below the other."""
    target = console()
    with target.capture() as captured:
        for view in views:
            target.print(view)
    # What fills a cell up to its width is nobody's business behind the last column.
    write("".join(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines()))


def write(text: str) -> None:
    """Writes to standard output at once; where nobody reads it any more, the program ends well and in silence."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.OK) from None


def complain(problem: object) -> None:
    """Says in one line on standard error what went wrong."""
    sys.stderr.write(f"optctl: {printable(str(problem))}\n")
