"""The settings of the sync policy: their ranges, and what follows where one is left out."""

import math
from typing import Final

from optd_wire.errors import InvalidPolicy
from optd_wire.values import OnDeath, Sync

MAX_WORKERS = 4096
LIVE: Final = "live"


def check(given: Sync) -> None:
    """Raise `InvalidPolicy` for a setting that is out of range, or that does not go with another one."""
    for problem in (_problem_of_workers(given), _problem_of_times(given)):
        if problem:
            raise InvalidPolicy(policy="sync", problem=problem)


def on_death_of(given: Sync) -> OnDeath:
    """Return what a death does. A job whose workers are those that live has no place that could stay empty."""
    if given.on_death is not None:
        return given.on_death
    return "continue" if given.workers == LIVE else "wait"


def _problem_of_workers(given: Sync) -> str:
    if given.workers == LIVE:
        if given.on_death == "wait":
            return "on_death must be 'continue' or 'fail' if workers is 'live', got 'wait'"
        most = MAX_WORKERS
    elif not 1 <= given.workers <= MAX_WORKERS:
        return f"workers must be in [1, {MAX_WORKERS}] or 'live', got {given.workers}"
    else:
        most = given.workers
    if given.quorum is not None and not 1 <= given.quorum <= most:
        return f"quorum must be in [1, {most}], got {given.quorum}"
    return ""


def _problem_of_times(given: Sync) -> str:
    if given.grace is not None and given.quorum is None:
        return f"grace is the time after which a quorum is enough, and there is no quorum; got grace {given.grace}"
    if isinstance(given.grace, int | float) and not 0 <= given.grace < math.inf:
        return f"grace must be in [0, inf) seconds or 'auto', got {given.grace:g}"
    if given.round_seconds is not None and not 0 < given.round_seconds < math.inf:
        return f"round_seconds must be in (0, inf), got {given.round_seconds:g}"
    return ""
