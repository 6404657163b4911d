"""How many steps workers of unequal speed take. No server, no clock."""

import pytest

from optd.local_steps.speeds import Stopwatch, first_steps, read_every, steps_for
from optd_wire.errors import InvalidRequest


@pytest.mark.parametrize(
    ("given", "expected"), [(7, (7, False)), ("auto", (100, True)), ("auto:500", (500, True)), ("auto:1", (1, True))]
)
def test_every_is_a_number_or_follows_the_speeds(given, expected):
    assert read_every(given) == expected


@pytest.mark.parametrize("given", ["500", "auto:", "auto:x", "auto:-1", "fast:3", 2.5, True, None])
def test_anything_else_is_refused(given):
    with pytest.raises(InvalidRequest, match="every must be a number of steps, 'auto' or 'auto:H', got"):
        read_every(given)


@pytest.mark.parametrize(
    ("own", "others", "steps"),
    [
        (10.0, (10.0, 5.0), 100),
        (5.0, (10.0, 5.0), 50),
        (1.0, (3.0,), 33),
        (0.001, (10.0,), 1),
        (10.0, (5.0,), 100),  # the others have measured it when it was slower
        (10.0, (), 100),
        (10.0, (0.0, 0.0), 100),
        (0.0, (10.0,), 100),
    ],
)
def test_the_fastest_takes_the_most_and_the_others_what_fits_its_time(own, others, steps):
    assert steps_for(own, others, 100) == steps


@pytest.mark.parametrize(("most", "steps"), [(100, 10), (5, 1), (11, 2), (1, 1)])
def test_the_first_cycle_is_short(most, steps):
    assert first_steps(most) == steps


def test_only_the_time_of_steps_counts():
    now = 0.0
    watch = Stopwatch(lambda: now)
    watch.stop()  # the first step began before the watch did
    assert watch.measure() == 0
    for seconds in (0.5, 0.25, 0.25):
        watch.start()
        now += seconds
        watch.stop()
        now += 100  # a sync
    assert watch.measure() == 3.0
    assert watch.measure() == 3.0, "nothing was computed since"
    watch.start()
    now += 2
    watch.stop()
    assert watch.measure() == 0.5
