"""The open round of a job in words, for `watch` and `explain`."""

from optd.session.awaited import whom
from optd.session.saying import lasted, listed
from optd_wire.values import RoundInfo


def short(found: RoundInfo, seconds_ago: float = 0.0) -> str:
    """One line about the open round; empty if no push waits.

    `seconds_ago` is the age of the answer.
    """
    if not found.opened_unix_ms:
        return ""
    waits = whom(found)
    parts = [
        f"step {found.step:,} open for {open_for(found, seconds_ago)}",
        f"in it {listed(list(found.arrived))}" if found.arrived else "",
        f"on their way {listed(list(found.arriving))}" if found.arriving else "",
        f"waits for {waits}" if waits else "",
        _deadline(found, seconds_ago),
    ]
    return "; ".join(filter(None, parts))


def facts(found: RoundInfo) -> list[tuple[str, str]]:
    """The open round as names and values."""
    if not found.opened_unix_ms:
        return [("round", "no push waits" + (f"; the next step takes {found.release}" if found.release else ""))]
    rows = [
        ("round", f"step {found.step:,}, open for {open_for(found)}"),
        ("in it", listed(list(found.arrived))),
        ("on their way", listed(list(found.arriving))),
        ("waits for", whom(found)),
        ("released by", "; ".join(filter(None, [found.release, _deadline(found)]))),
    ]
    return [(name, fact) for name, fact in rows if fact]


def open_for(found: RoundInfo, seconds_ago: float = 0.0) -> str:
    """How long a push has been waiting for the step."""
    return lasted((found.unix_ms - found.opened_unix_ms) / 1000 + seconds_ago)


def _deadline(found: RoundInfo, seconds_ago: float = 0.0) -> str:
    if not found.deadline_unix_ms:
        return ""
    return f"at the latest in {lasted((found.deadline_unix_ms - found.unix_ms) / 1000 - seconds_ago)}"
