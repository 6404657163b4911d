"""Docstrings: paragraphs wrapped to the width of the code, in the form that the rest of the client uses."""

import re
import textwrap
from collections.abc import Iterable, Sequence

from generation.options import Argument

WIDTH = 120
_UNBROKEN = re.compile(r"`[^`]{1,60}`|[\[(][-\w., ]{1,40}[)\]]")
"""Code and ranges: a line break inside makes them hard to read."""


def docstring(
    summary: str, paragraphs: Sequence[str], arguments: Iterable[Argument], raises: Sequence[str] = ()
) -> str:
    """Return a docstring at the indentation of a class body, quotes included."""
    lines = [wrapped(f'"""{summary}', "    ")]
    for paragraph in paragraphs:
        lines += ["", wrapped(paragraph, "    ")]
    lines += ["", "    Args:"]
    lines += [wrapped(f"{argument.name}: {argument.doc}", " " * 8, " " * 12) for argument in arguments]
    if raises:
        lines += ["", "    Raises:"]
        lines += [wrapped(each, " " * 8, " " * 12) for each in raises]
    return "\n".join([*lines, '    """'])


def attribute(text: str) -> str:
    """Return the docstring of an attribute at the indentation of a class body, quotes included."""
    return wrapped(f'"""{text}"""', "    ")


def wrapped(text: str, first: str, following: str | None = None) -> str:
    """Return a paragraph, indented and as wide as the code may be."""
    unbroken = _UNBROKEN.sub(lambda found: found[0].replace(" ", "\0"), text)
    filled = textwrap.fill(
        unbroken,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if following is None else following,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\0", " ")
