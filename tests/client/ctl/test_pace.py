from optd.ctl.pace import Pace


def test_one_report_tells_no_pace_until_it_is_old():
    pace = Pace(window=10)
    assert pace.steps_per_second(0) is None
    pace.note(5, now=100)
    assert pace.steps_per_second(101) is None
    assert pace.steps_per_second(111) == 0


def test_the_mean_over_the_window():
    pace = Pace(window=10)
    for second in range(31):
        pace.note(version=4 * second, now=second)
    assert pace.steps_per_second(30) == 4


def test_a_job_that_stands_still_slows_down():
    pace = Pace(window=10)
    pace.note(0, now=0)
    pace.note(20, now=10)
    assert pace.steps_per_second(10) == 2
    assert pace.steps_per_second(20) == 1


def test_two_reports_at_once_divide_by_no_zero():
    pace = Pace()
    pace.note(0, now=1)
    pace.note(1, now=1)
    assert pace.steps_per_second(1) is not None
