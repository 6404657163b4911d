"""Which fragment is sent when, as tables and for any numbers. No server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd.local_steps.schedule import Schedule
from optd_wire.errors import InvalidRequest

TABLE = [
    # every, fragments, delay, steps, {step: (lands, send)}
    (4, 1, 0, 12, {4: ((), 0), 8: ((), 0), 12: ((), 0)}),
    (1, 1, 0, 3, {1: ((), 0), 2: ((), 0), 3: ((), 0)}),
    (4, 1, 3, 12, {4: ((), 0), 7: ((0,), None), 8: ((), 0), 11: ((0,), None), 12: ((), 0)}),
    (6, 3, 0, 12, {2: ((), 0), 4: ((), 1), 6: ((), 2), 8: ((), 0), 10: ((), 1), 12: ((), 2)}),
    (6, 3, 1, 7, {2: ((), 0), 3: ((0,), None), 4: ((), 1), 5: ((1,), None), 6: ((), 2), 7: ((2,), None)}),
    # An answer that is due when the next fragment is sent, and two fragments under way at once.
    (6, 3, 2, 8, {2: ((), 0), 4: ((0,), 1), 6: ((1,), 2), 8: ((2,), 0)}),
    (6, 3, 3, 9, {2: ((), 0), 4: ((), 1), 5: ((0,), None), 6: ((), 2), 7: ((1,), None), 8: ((), 0), 9: ((2,), None)}),
    # H that is no multiple of P: each fragment keeps its distance of H.
    (5, 2, 0, 10, {2: ((), 0), 5: ((), 1), 7: ((), 0), 10: ((), 1)}),
]


def run(schedule, steps):
    found = {}
    for step in range(1, steps + 1):
        due = schedule.after_step()
        if due.lands or due.send is not None:
            found[step] = (due.lands, due.send)
    return found


@pytest.mark.parametrize(("every", "fragments", "delay", "steps", "expected"), TABLE)
def test_syncs_are_at_these_steps(every, fragments, delay, steps, expected):
    assert run(Schedule(every, fragments, delay), steps) == expected


SCHEDULES = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(0, 8)).filter(
    lambda given: given[0] >= max(given[1], given[2] + 1)
)


@settings(deadline=None)
@given(SCHEDULES, st.integers(1, 80))
def test_each_fragment_is_sent_every_h_steps_and_lands_after_its_delay(numbers, steps):
    every, fragments, delay = numbers
    sent, landed = {}, {}
    for step, (lands, send) in run(Schedule(every, fragments, delay), steps).items():
        for fragment in lands:
            landed.setdefault(fragment, []).append(step)
        if send is not None:
            sent.setdefault(send, []).append(step)
    for fragment, times in sent.items():
        assert times == list(range(times[0], steps + 1, every))
        assert 1 <= times[0] <= every
        due = [time + delay for time in times if time + delay <= steps] if delay else []
        assert landed.get(fragment, []) == due


@settings(deadline=None)
@given(SCHEDULES, st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=4))
def test_a_fragment_is_back_before_it_is_sent_again_whatever_h_becomes(numbers, changes):
    schedule = Schedule(*numbers)
    under_way = set()
    for wait, every in [*changes, (40, 1)]:
        for _ in range(wait):
            due = schedule.after_step()
            under_way -= set(due.lands)
            if due.send is not None:
                assert due.send not in under_way
                if schedule.delay:
                    under_way.add(due.send)
        schedule.resize(every)


@settings(deadline=None)
@given(SCHEDULES, st.integers(0, 30), st.integers(0, 30))
def test_a_schedule_goes_on_from_its_state(numbers, before, after):
    one, other = Schedule(*numbers), Schedule(*numbers)
    run(one, before)
    other.load(one.state())
    assert run(one, after) == run(other, after)


def test_h_changes_with_the_next_cycle_or_at_once_if_that_begins():
    schedule = Schedule(4, 2)
    assert run(schedule, 3) == {2: ((), 0)}
    schedule.resize(8)
    assert (schedule.every, schedule.begins) == (4, False)
    assert run(schedule, 9) == {1: ((), 1), 5: ((), 0), 9: ((), 1)}
    schedule.resize(2)
    assert (schedule.every, schedule.begins) == (2, True)
    assert run(schedule, 2) == {1: ((), 0), 2: ((), 1)}
    schedule.resize(1)
    assert schedule.every == 2, "less than the fragments"


def test_another_fragment_may_be_next_and_the_steps_stay():
    schedule = Schedule(6, 3)
    run(schedule, 3)
    assert schedule.next_fragment == 1
    schedule.align(0)
    assert run(schedule, 7) == {1: ((), 0), 3: ((), 1), 5: ((), 2), 7: ((), 0)}


def test_steps_count_double_until_half_the_way_to_the_next_sync_is_made_up():
    schedule = Schedule(6, 1, 2)
    assert run(schedule, 8) == {6: ((), 0), 8: ((0,), None)}
    schedule.hasten()
    assert run(schedule, 18) == {
        2: ((), 0),
        4: ((0,), None),
        7: ((), 0),
        9: ((0,), None),
        13: ((), 0),
        15: ((0,), None),
    }
    schedule.hasten()
    schedule.restart()
    assert run(schedule, 6) == {6: ((), 0)}


@settings(deadline=None, max_examples=300)
@given(st.integers(2, 12), st.data())
def test_a_worker_that_misses_rounds_comes_into_step_with_the_others(every, data):
    """Each step takes a tick. The others send at each multiple of H ticks, and the worker has been held up once."""
    schedule = Schedule(every, 1, data.draw(st.integers(1, every - 1), "delay"))
    now, grace = data.draw(st.integers(0, 3 * every), "held up"), data.draw(st.integers(0, 2), "grace")
    upcoming, misses, closes, is_under_way = now // every + 1, [], 0, False
    for _ in range(20 * every):
        now += 1
        due = schedule.after_step()
        if due.lands or (due.send is not None and is_under_way):
            now = max(now, closes)  # ahead of the others it waits
            is_under_way = False
            upcoming = now // every + 1
            if misses[-1]:
                schedule.hasten()
        if due.send is not None:
            misses.append(now > upcoming * every + grace)
            closes, is_under_way = max(now, upcoming * every), True
    assert sum(misses) <= 5
    assert not any(misses[-8:])


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((4, 0, 0), "fragments must be at least 1, got 0"),
        ((4, 1, -1), "delay must be at least 0 steps, got -1"),
        ((0, 1, 0), "every must be at least 1 steps, .* got 0"),
        ((3, 4, 0), "every must be at least 4 steps, as 4 fragments are sent one after the other, .* got 3"),
        ((3, 1, 3), "every must be at least 4 steps, .* each is back after 3 steps; got 3"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(numbers, says):
    with pytest.raises(InvalidRequest, match=says):
        Schedule(*numbers)
