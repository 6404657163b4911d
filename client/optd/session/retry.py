"""Retries of calls that were lost on the way, or that a full server refused, with jitter, until the time is up."""

import logging
import random
import time
from collections.abc import Callable
from copy import copy
from typing import TypeVar

from optd_wire.errors import DeadlineExceeded, OptdError, ResourceExhausted, Unavailable, Unreachable

T = TypeVar("T")
logger = logging.getLogger("optd")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0


def with_retries(
    attempt: Callable[[float], T],
    *,
    address: str,
    timeout: float,
    on_first_loss: Callable[[OptdError], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Calls `attempt(seconds left)` until it is neither lost nor refused by a full server, or the time is up.

    Lost means `Unavailable`; after `timeout` seconds it raises `Unreachable`. The time counts from the first loss: a
    call that had been waiting for long gets as much to find the server again. A full server refuses with a delay
    (`retry_after`); if that ends after `timeout` seconds, counted from the beginning, its refusal is raised.

    `attempt` must be safe to repeat. Pauses grow twofold and are drawn at random up to their length ("full jitter"),
    so that workers that lost a server together do not come back together. A delay that the server has named comes
    before the pause, so the server is never asked earlier. `on_first_loss` is told the first error; without it a
    refusal is logged.
    """
    began = clock()
    until = began + timeout
    pause = FIRST_PAUSE
    last: OptdError | None = None
    is_lost = False
    while True:
        left = until - clock()
        try:
            return attempt(max(left, 0.001))
        except DeadlineExceeded:
            # A last attempt with hardly any time left says less than the error of the one before it.
            if last is None or left > LONGEST_PAUSE:
                raise
            raise _given_up(last, address, clock() - began) from last
        except Unavailable as loss:
            if not is_lost:
                is_lost, until = True, clock() + timeout
            last = loss
        except ResourceExhausted as refusal:
            if refusal.retry_after is None:
                raise
            last = refusal
        left = until - clock()
        delay = last.retry_after or 0.0
        if left <= delay:
            raise _given_up(last, address, clock() - began) from last
        if pause == FIRST_PAUSE:
            if on_first_loss is not None:
                on_first_loss(last)
            elif isinstance(last, ResourceExhausted):
                logger.warning("the server at %s is full, so this waits: %s", address, last)
        # The last pause ends when the time is up; one more attempt follows it.
        sleep(min(delay + random.uniform(0, pause), left))  # noqa: S311 - spreads load, protects nothing
        pause = min(2 * pause, LONGEST_PAUSE)


def _given_up(last: OptdError, address: str, seconds: float) -> OptdError:
    """The error of a call whose time is up; `last` is that of its last attempt."""
    if not isinstance(last, Unavailable):
        return copy(last)
    problem = last.values.get("problem", str(last))
    return Unreachable(address=address, seconds=f"{seconds:.1f}", problem=problem)
