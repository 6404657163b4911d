"""The exit codes of `optctl`, and its one-line errors."""

from enum import IntEnum

import typer

from optd_wire.errors import Expired, NotFound, OptdError, Unauthenticated, Unavailable, UnknownAlgorithm

# typer includes click under another name; this is the class of all errors of a command line.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

INTERRUPTED = 130  # the convention for a program that was ended by Ctrl-C


class Exit(IntEnum):
    """The exit codes that scripts may rely on; MEANINGS has them in words."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    UNAUTHENTICATED = 4
    NOT_FOUND = 5


MEANINGS = {
    Exit.OK: "done",
    Exit.REFUSED: (
        "the server answered with an error or is not healthy, a question was answered with no, or damage was found"
    ),
    Exit.USAGE: "the command line is wrong",
    Exit.UNREACHABLE: "the server was not reached, or did not answer in time",
    Exit.UNAUTHENTICATED: "the server wants a token, or another one",
    Exit.NOT_FOUND: "no such job, group, parameter, worker or algorithm",
}

# The first that fits counts.
_CODES: tuple[tuple[type[OptdError], Exit], ...] = (
    (NotFound, Exit.NOT_FOUND),
    (UnknownAlgorithm, Exit.NOT_FOUND),
    (Unauthenticated, Exit.UNAUTHENTICATED),
    (Unavailable, Exit.UNREACHABLE),
    (Expired, Exit.UNREACHABLE),
    (OptdError, Exit.REFUSED),
)


class BadUsage(Exception):
    """An argument or option that cannot be used; the message says why."""


def code_of(error: OptdError) -> Exit:
    """The exit code of an error of optd."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def usage_line(error: Exception) -> str:
    """Typer's error about a command line, and the command that shows its help."""
    message = getattr(error, "format_message", error.__str__)().removesuffix(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "optctl"
    return f"{message}; see '{command} --help'"
