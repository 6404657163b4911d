"""Retries of calls that were lost on the way, with jitter, until the time is up."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from optd_wire.errors import DeadlineExceeded, Unavailable, Unreachable

T = TypeVar("T")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0


def with_retries(
    attempt: Callable[[float], T],
    *,
    address: str,
    timeout: float,
    on_first_loss: Callable[[Unavailable], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Calls `attempt(seconds left)` until it does not raise `Unavailable`; raises `Unreachable` after `timeout` s.

    The time counts from the first loss: a call that had been waiting for long gets as much to find the server again.
    `attempt` must be safe to repeat. Pauses grow twofold and are drawn at random up to their length ("full jitter"),
    so that workers that lost a server together do not come back together. `on_first_loss` is told the first error.
    """
    began = clock()
    until = began + timeout
    pause = FIRST_PAUSE
    lost: Unavailable | None = None
    while True:
        left = until - clock()
        try:
            return attempt(max(left, 0.001))
        except DeadlineExceeded:
            # A last attempt with hardly any time left says less than the error of the one before it.
            if lost is None or left > LONGEST_PAUSE:
                raise
            raise _unreachable(lost, address, clock() - began) from lost
        except Unavailable as error:
            if lost is None:
                until = clock() + timeout
            lost = error
            left = until - clock()
            if left <= 0:
                raise _unreachable(lost, address, clock() - began) from lost
            if pause == FIRST_PAUSE and on_first_loss is not None:
                on_first_loss(error)
            # The last pause ends when the time is up; one more attempt follows it.
            sleep(min(random.uniform(0, pause), left))  # noqa: S311 - spreads load, protects nothing
            pause = min(2 * pause, LONGEST_PAUSE)


def _unreachable(lost: Unavailable, address: str, seconds: float) -> Unreachable:
    problem = lost.values.get("problem", str(lost))
    return Unreachable(address=address, seconds=f"{seconds:.1f}", problem=problem)
