"""Values in words, for tables and lines that people read."""

import math
import time
from collections.abc import Iterable, Mapping

from optd_wire.values import (
    Async,
    Bounded,
    Exponential,
    GradientSummary,
    GroupOptions,
    JobVersion,
    Options,
    OptionValue,
    Policy,
    Sync,
)

NONE = "-"
_BLOCKS = " ▁▂▃▄▅▆▇█"


def count(number: int) -> str:
    """1234567 as 1,234,567."""
    return f"{number:,}"


def durable(version: JobVersion) -> str:
    """The newest version that survives a power cut; `-` if none does."""
    return count(version.durable_version) if version.durable_version else NONE


def counted(number: int, what: str) -> str:
    """1 group, 1,234 groups."""
    return f"{count(number)} {what}" + ("" if number == 1 else "s")


def number(value: float) -> str:
    """Four significant digits; `-` for None."""
    return NONE if math.isnan(value) else f"{value:.4g}"


def span(low: float, high: float) -> str:
    """From the lowest to the highest, with three digits each."""
    return NONE if math.isnan(low) else f"{low:.3g} .. {high:.3g}"


def size(number_of_bytes: int) -> str:
    """Bytes in the unit that fits: 96000 as 93.8 KiB."""
    amount = float(number_of_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float) -> str:
    """The two largest units: 3 h 12 min, 2 d 4 h, 8 s."""
    whole = int(max(0.0, seconds))
    parts = [
        (whole // 86400, "d"),
        (whole // 3600 % 24, "h"),
        (whole // 60 % 60, "min"),
        (whole % 60, "s"),
    ]
    first = next((index for index, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount or first == 3)


def moment(unix_ms: int) -> str:
    """A time of the server's clock, in the local zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_ms / 1000))


def option(value: OptionValue) -> str:
    """An option's value in the notation that `optctl set` takes."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case tuple():
            return ",".join(option(element) for element in value)
        case float():
            return repr(value).removesuffix(".0")
        case _:
            return str(value)


def shortened(value: OptionValue) -> str:
    """As `option`, with six significant digits of a number, for tables."""
    match value:
        case tuple():
            return ",".join(shortened(element) for element in value)
        case float():
            return f"{value:.6g}"
        case _:
            return option(value)


def options(given: Options, names: Iterable[str]) -> str:
    """`lr=0.001 betas=0.9,0.999` for the named ones."""
    return " ".join(f"{name}={option(given[name])}" for name in names)


def in_order(given: Mapping[str, object]) -> list[str]:
    """Names of options: `lr` first, the others by the alphabet."""
    return sorted(given, key=lambda name: (name != "lr", name))


def algorithms(job: str, groups: Iterable[GroupOptions]) -> str:
    """The algorithms of a job's groups, each once: `muon,adamw`; that of the job if it has no groups."""
    return ",".join(dict.fromkeys(group.algorithm for group in groups)) or job


def policy(value: Policy) -> str:
    """`async`, `sync of 4, quorum 3, grace auto` or `bounded by 2`."""
    match value:
        case Sync():
            parts = [
                f"sync of {value.workers}",
                "" if value.quorum is None else f"quorum {value.quorum}",
                "" if value.grace is None else f"grace {_seconds(value.grace)}",
                "" if value.round_seconds is None else f"at most {_seconds(value.round_seconds)}",
                "" if value.on_death is None else f"on death {value.on_death}",
            ]
        case Bounded():
            parts = [f"bounded by {value.staleness}"]
        case Async():
            parts = ["async", _scale(value.staleness)]
            parts.append("" if value.max_staleness is None else f"staleness at most {value.max_staleness}")
    return ", ".join(part for part in parts if part)


def _seconds(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g} s"


def _scale(value: str | Exponential | None) -> str:
    match value:
        case None:
            return ""
        case Exponential(alpha, cutoff):
            return f"staleness exponential {alpha:g}" + ("" if cutoff is None else f" up to {cutoff:g}")
        case _:
            return f"staleness {value}"


def gradients(found: GradientSummary) -> str:
    """The counts of a job's gradients that are not zero: `clipped 3  norm 1.25`."""
    parts = [
        ("clipped", count(found.clipped_steps), found.clipped_steps),
        ("accumulated", count(found.accumulated), found.accumulated),
        ("norm", number(found.norm), found.norm),
        ("skipped", count(found.skipped_steps), found.skipped_steps),
        ("nonfinite", _nonfinite(found), found.nonfinite),
    ]
    return "  ".join(f"{name} {shown}" for name, shown, is_there in parts if is_there)


def _nonfinite(found: GradientSummary) -> str:
    """How many entries, and the last time: 3 (w0 in hidden.weight at version 7)."""
    where = f"{found.nonfinite_worker} in {found.nonfinite_parameter} at version {count(found.nonfinite_version)}"
    return f"{count(found.nonfinite)} (last {moment(found.nonfinite_unix_ms)}, {where})"


def shape(dimensions: tuple[int, ...]) -> str:
    """64x32; a parameter without dimensions is a scalar."""
    return "x".join(str(length) for length in dimensions) or "scalar"


def steps(low: int, high: int) -> str:
    """One number if all are equal, else the range."""
    return count(low) if low == high else f"{count(low)}-{count(high)}"


def yes(value: bool) -> str:
    """Yes or no."""
    return "yes" if value else "no"


def histogram(counts: Iterable[int]) -> str:
    """A block for each bin; the highest has the most, and only an empty bin is blank."""
    bins = tuple(counts)
    most = max(bins, default=0)
    return "".join(_BLOCKS[math.ceil(amount * (len(_BLOCKS) - 1) / most)] if amount else " " for amount in bins)


def printable(line: str) -> str:
    """One line without control characters: text of servers and callers must not move the cursor."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line.replace("\n", " "))
