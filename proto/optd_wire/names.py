"""The names that jobs, workers, groups and parameters may have, and the checks of them."""

import re

from optd_wire.errors import InvalidName, InvalidRequest

LONGEST = 200
LONGEST_ID = 64
NAME = re.compile(rf"[A-Za-z0-9._/-]{{1,{LONGEST}}}")
_NAME_IS = f"1 to {LONGEST} of the characters A-Z a-z 0-9 . _ / - and must not contain '..'"
_LABEL_IS = f"1 to {LONGEST} characters that can be printed, with no space at either end"


def check_name(kind: str, name: str) -> str:
    """Checks the name of a job or worker, which may become part of a path, and returns it.

    Raises `InvalidName` unless it has 1 to 200 of the characters `A-Z a-z 0-9 . _ / -`, and no `..`.
    """
    if NAME.fullmatch(name) is None or ".." in name:
        raise _invalid(kind, name, _NAME_IS)
    return name


def check_label(kind: str, name: str) -> str:
    """Checks the name of a group or parameter, such as `blocks.my layer.weight`, and returns it.

    Raises `InvalidName` unless it has 1 to 200 printable characters, and no space at either end.
    """
    if not 1 <= len(name) <= LONGEST or not name.isprintable() or name != name.strip():
        raise _invalid(kind, name, _LABEL_IS)
    return name


def _invalid(kind: str, name: str, rule: str) -> InvalidName:
    # The name may be anything, even megabytes long, so quote only its beginning.
    return InvalidName(kind=kind, name=ascii(name[:60]) + ("..." if len(name) > 60 else ""), rule=rule)


def check_id(what: str, text: str) -> str:
    """Checks an id that a caller has drawn at random, and returns it.

    Raises `InvalidRequest` if it has more than 64 characters.
    """
    if len(text) > LONGEST_ID:
        raise InvalidRequest(problem=f"{what} must have at most {LONGEST_ID} characters, got {len(text)}")
    return text
