import itertools

import pytest

from optd.session.retry import with_retries
from optd_wire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    MemoryExceeded,
    ShuttingDown,
    TooManyBytes,
    TooManyRequests,
    Unreachable,
)

LOST = ConnectionLost(address="a:1", rpc="Push", problem="refused")


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 100.0
        self.pauses = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def run(attempt, timeout=60.0, **more):
    run.time = time = Time()
    return with_retries(attempt, address="a:1", timeout=timeout, clock=time.clock, sleep=time.sleep, **more)


def test_what_is_lost_is_tried_again_with_growing_jittered_pauses():
    left = []

    def attempt(seconds):
        left.append(seconds)
        if len(left) < 12:
            raise LOST
        return "answer"

    assert run(attempt) == "answer"
    bounds = [min(0.05 * 2**n, 2.0) for n in range(11)]
    assert all(0 <= pause <= bound for pause, bound in zip(run.time.pauses, bounds, strict=True))
    assert len(set(run.time.pauses)) == 11
    assert left[0] == 60
    assert left == sorted(left, reverse=True)


def test_time_that_is_up_names_the_address_and_how_long():
    def attempt(seconds):
        raise LOST

    with pytest.raises(Unreachable, match=r"no optd server answers at a:1: tried for 6.0 s \(refused\)"):
        run(attempt, timeout=6.0)
    assert run.time.now - 100 <= 6


@pytest.mark.parametrize("error", [DeadlineExceeded(rpc="x", address="a", seconds=1, hint=""), ValueError("mine")])
def test_nothing_else_is_tried_again(error):
    calls = []

    def attempt(seconds):
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        run(attempt)
    assert calls == [1]


def test_a_last_attempt_without_time_tells_what_was_wrong_before():
    def attempt(seconds):
        if seconds > 1:
            raise LOST
        raise DeadlineExceeded(rpc="x", address="a:1", seconds=seconds, hint="")

    with pytest.raises(Unreachable, match=r"a:1: tried for \d\.\d s \(refused\)"):
        run(attempt, timeout=6.0)


FULL = TooManyBytes(limit=1, whose="the server", seconds=3, setting="--max-inflight-bytes")


def refusals(error, count):
    """An attempt that is refused so many times, and the times at which it was made."""
    times = []

    def attempt(seconds):
        times.append(run.time.now)
        if len(times) <= count:
            raise error
        return "answer"

    return attempt, times


@pytest.mark.parametrize("error", [FULL, TooManyRequests(limit=4), ShuttingDown()], ids=lambda error: error.reason)
def test_a_server_that_is_full_is_asked_again_after_its_delay_and_never_earlier(error):
    attempt, times = refusals(error, 8)
    assert run(attempt) == "answer"
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) == 8
    assert all(gap >= error.retry_after for gap in gaps)
    assert len(set(gaps)) == 8, "those that were refused together come back together"


def test_the_delay_of_the_server_counts_not_the_one_known_here():
    error = TooManyRequests(limit=4)
    error.retry_after = 7.5
    attempt, times = refusals(error, 1)
    assert run(attempt) == "answer"
    assert times[1] - times[0] >= 7.5


def test_a_refusal_that_outlasts_the_timeout_is_raised_itself():
    attempt, times = refusals(FULL, 1000)
    with pytest.raises(TooManyBytes, match="--max-inflight-bytes"):
        run(attempt, timeout=10.0)
    assert 1 < len(times) < 11
    assert times[-1] <= 110


def test_a_limit_that_does_not_pass_is_raised_at_once():
    attempt, times = refusals(MemoryExceeded(what="job 'a'", needed=2, free=1, limit=1), 1)
    with pytest.raises(MemoryExceeded):
        run(attempt)
    assert len(times) == 1


def test_a_full_server_is_told_of_once_a_call():
    told = []
    attempt, _ = refusals(FULL, 3)
    run(attempt, on_first_loss=told.append)
    assert told == [FULL]


def test_where_nobody_is_told_a_full_server_is_logged_once(caplog):
    attempt, _ = refusals(FULL, 3)
    run(attempt)
    assert [record.getMessage() for record in caplog.records] == [f"the server at a:1 is full, so this waits: {FULL}"]
