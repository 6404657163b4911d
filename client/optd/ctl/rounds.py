"""The open rounds of a job in words, for `watch` and `explain`."""

from collections.abc import Sequence

from optd.session.awaited import at_the_latest, whom
from optd.session.saying import lasted, listed
from optd_wire.values import RoundInfo


def short(rounds: Sequence[RoundInfo], seconds_ago: float = 0.0) -> list[str]:
    """A line about each open round. `seconds_ago` is the age of the answer."""
    return [_short(found, seconds_ago) for found in rounds]


def _short(found: RoundInfo, seconds_ago: float) -> str:
    waits = whom(found)
    parts = [
        _title(found, seconds_ago),
        f"in it {listed(list(found.arrived))}" if found.arrived else "",
        f"on their way {listed(list(found.arriving))}" if found.arriving else "",
        f"waits for {waits}" if waits else "",
        at_the_latest(found, seconds_ago),
    ]
    return "; ".join(filter(None, parts))


def facts(rounds: Sequence[RoundInfo]) -> list[tuple[str, str]]:
    """The open rounds as names and values."""
    rows = [
        row
        for found in rounds
        for row in [
            ("round", _title(found)),
            ("in it", listed(list(found.arrived))),
            ("on their way", listed(list(found.arriving))),
            ("waits for", whom(found)),
            ("released by", found.release),
        ]
    ]
    return [(name, fact) for name, fact in rows if fact] or [("round", "no push waits for others")]


def _title(found: RoundInfo, seconds_ago: float = 0.0) -> str:
    fragment = f" of fragment {found.fragment}" if found.fragment else ""
    since = f"open for {_open_for(found, seconds_ago)}" if found.opened_unix_ms else "no gradient is there yet"
    return f"step {found.step:,}{fragment}, {since}"


def _open_for(found: RoundInfo, seconds_ago: float = 0.0) -> str:
    """How long a gradient has been waiting for the step."""
    return lasted((found.unix_ms - found.opened_unix_ms) / 1000 + seconds_ago)
