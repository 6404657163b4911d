"""Which names a job, group, parameter or worker may have."""

import re

from optd_wire.errors import InvalidName

NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}")


def check_name(kind: str, name: str) -> str:
    """Returns `name`; raises `InvalidName` unless it is 1 to 200 of `A-Z a-z 0-9 . _ / -`, without `..`."""
    if NAME.fullmatch(name) is None or ".." in name:
        # The name itself may be anything, megabytes included: quote only its beginning.
        raise InvalidName(kind=kind, name=ascii(name[:60]) + ("..." if len(name) > 60 else ""))
    return name
