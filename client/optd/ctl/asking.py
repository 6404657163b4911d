"""A question on the terminal, before something is lost."""

import sys

import typer

from optd.ctl import output
from optd.ctl.exits import BadUsage, Exit


def confirm(question: str, verb: str, otherwise: str) -> None:
    """Asks, and ends the program with the line `otherwise` unless the answer is yes.

    Raises `BadUsage` if there is nobody to ask; `verb` is what `--yes` then does.
    """
    if not sys.stdin.isatty():
        raise BadUsage(f"there is no terminal to ask on: pass --yes to {verb}")
    sys.stderr.write(f"{question}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        output.complain(otherwise)
        raise typer.Exit(Exit.REFUSED)
