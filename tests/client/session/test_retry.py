import pytest

from optd.session.retry import with_retries
from optd_wire.errors import ConnectionLost, DeadlineExceeded, Unreachable

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


def run(attempt, timeout=60.0):
    time = Time()
    try:
        return with_retries(attempt, address="a:1", timeout=timeout, clock=time.clock, sleep=time.sleep)
    finally:
        run.time = time


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
