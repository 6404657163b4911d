"""Standard output: one JSON document, or views for people."""

import os
import sys

import typer
from rich.console import Console, RenderableType

from optd.ctl.exits import Exit
from optd.ctl.text import printable

# Without a terminal, lines are not folded: grep needs whole names.
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
    # Padding after the last column is removed.
    write("".join(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines()))


def write(text: str) -> None:
    """Writes to standard output at once; if the reader of a pipe has gone, the program ends silently with success."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.OK) from None


def complain(problem: object) -> None:
    """Prints one line about an error to standard error."""
    sys.stderr.write(f"optctl: {printable(str(problem))}\n")
