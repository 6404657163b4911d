"""Lines that tell people why something takes long: of the log, or on stderr if the program has set up none."""

import logging
import sys

logger = logging.getLogger("optd")


def say(line: str, level: int = logging.INFO) -> None:
    """Logs a line; writes it to stderr if the program has set up no logging, as Python does with warnings."""
    if logger.hasHandlers():
        logger.log(level, line)
    elif sys.stderr is not None:
        sys.stderr.write(line + "\n")


def listed(names: list[str], most: int = 8) -> str:
    """`a`, `a and b`, `a, b and c`; of more than `most`, the first ones and how many more."""
    shown = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def lasted(seconds: float) -> str:
    """A length of time in the unit that fits: `0.4 s`, `12 s`, `3 min`, `2.5 h`, `4 d`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} d"
