"""Read and write sizes in bytes as people do: `16777216`, `16MiB`, `16MB`, `1.5 GiB`."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("IB", 1024), ("B", 1000))
}
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
EXAMPLES = "16777216, 16MiB or 1.5GiB"


def parse(value: object) -> int:
    """Return the number of bytes that `value` stands for.

    KiB, MiB, GiB and TiB are powers of 1024; KB, MB, GB and TB are powers of 1000. Raises `ValueError` if `value` is
    not a whole number of bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None:
        raise ValueError(f"must be a number of bytes, such as {EXAMPLES}")
    size = int(found[1]) * unit if found[1].isdecimal() else float(found[1]) * unit
    if size != int(size):
        raise ValueError(f"must be a whole number of bytes, such as {EXAMPLES}")
    return int(size)


def text(size: int) -> str:
    """Write a size as `parse` reads it, in the largest binary unit that needs no fraction."""
    for prefix, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{prefix}iB"
    return str(size)


def bounded(least: int, most: int | None = None) -> BeforeValidator:
    """Return a validator that reads a size and refuses one outside the bounds, in a message that states them."""
    bound = f"at least {text(least)} ({least} bytes)"
    if most is not None:
        bound += f" and at most {text(most)} ({most} bytes)"

    def read(value: object) -> int:
        size = parse(value)
        if size < least or (most is not None and size > most):
            raise ValueError(f"must be {bound}, such as {EXAMPLES}")
        return size

    return BeforeValidator(read)


MessageBytes = Annotated[int, bounded(64 << 10, 1 << 30)]
Bytes = Annotated[int, bounded(1 << 20)]
