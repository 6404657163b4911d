"""What the server remembers of its workers for people: times, staleness, refusals, and how their parts ended."""

import numpy as np
import pytest
from tests.server.engine.rounds import Rounds, play, random_arrays, until

from optd_server.engine.membership.activity import RECENT, Activity, Process, end_of
from optd_server.engine.membership.members import LEFT as HAS_LEFT
from optd_server.engine.membership.members import WENT_BACK
from optd_server.engine.readers.rounds import open_rounds
from optd_wire.errors import NonfiniteGradient
from optd_wire.values import EXPIRED, LEFT, REPLACED, ROLLED_BACK, JobUpdate, StalenessSummary, WorkerInfo

HERE, THERE = Process("here", 1), Process("there", 2)


@pytest.mark.parametrize(
    ("pushes", "expected"),
    [
        ([], (0, 0, 0)),
        ([3], (3, 3, 3)),
        ([1, 0], (0, 1, 1)),
        ([5, 0, 9], (5, 9, 9)),
        (range(1, 101), (50, 99, 100)),
        ([*[1000] * 5, *[1] * RECENT], (1, 1, 1)),
    ],
)
def test_the_spread_of_staleness_is_that_of_recent_pushes(pushes, expected):
    activity = Activity()
    activity.staleness.extend(pushes)
    assert activity.staleness_summary() == StalenessSummary(*expected)


@pytest.mark.parametrize(
    ("fenced_by", "expected"),
    [("", ""), (HAS_LEFT, LEFT), (f"{WENT_BACK}7", ROLLED_BACK), ("its lease of 30 s ran out", EXPIRED)],
)
def test_after_a_restart_the_recorded_reason_tells_how_a_part_ended(fenced_by, expected):
    assert end_of(fenced_by) == expected


def info(rounds: Rounds, worker: str) -> WorkerInfo:
    (found,) = rounds.job.workers.infos_of([worker])
    return found


def pass_to(rounds: Rounds, seconds: float) -> None:
    rounds.clock.pass_to(seconds)


def test_leaving_expiry_and_replacement_are_told_apart():
    async def scenario(rounds: Rounds) -> None:
        for worker in "abcd":
            await rounds.job.join(worker, None, HERE)
        pass_to(rounds, 3)
        await rounds.leave("a")
        rounds.expire("b")
        await rounds.job.join("c", None, THERE)
        await rounds.job.join("d", None, HERE)
        found = {worker: info(rounds, worker) for worker in "abcd"}
        assert {name: (each.active, each.ended, each.ended_unix_ms) for name, each in found.items()} == {
            "a": (False, LEFT, 3000),
            "b": (False, EXPIRED, 3000),
            "c": (True, REPLACED, 3000),
            "d": (True, "", 0),  # a process that joins again does not replace itself
        }
        assert (found["a"].host, found["a"].pid, found["c"].host, found["c"].pid) == ("here", 1, "there", 2)
        assert [each.joined_unix_ms for each in found.values()] == [0, 0, 3000, 3000]

    play(scenario, workers=0)


def test_a_server_that_was_restarted_learns_the_process_with_the_next_renewal():
    async def scenario(rounds: Rounds) -> None:
        await rounds.join("a")
        epoch = rounds.member("a").epoch
        rounds.job.workers.check("a", epoch, THERE)
        rounds.job.workers.check("a", epoch)
        assert (info(rounds, "a").host, info(rounds, "a").pid) == ("there", 2)

    play(scenario, workers=0)


def test_pushes_steps_waits_and_refusals_have_their_times():
    async def scenario(rounds: Rounds) -> None:
        await rounds.join("a", "b")
        pass_to(rounds, 2)
        first = rounds.upload("a")
        await until(lambda: info(rounds, "a").waiting)
        pass_to(rounds, 5)
        waits = info(rounds, "a")
        assert (waits.last_push_unix_ms, waits.waiting_since_unix_ms, waits.last_step_unix_ms) == (2000, 2000, 0)
        second = rounds.upload("b")
        for upload in (first, second):
            upload.send_all(rounds.messages(random_arrays(1)))
        for upload in (first, second):
            await upload
        stepped = info(rounds, "a")
        assert (stepped.waiting, stepped.waiting_since_unix_ms, stepped.last_step_unix_ms) == (False, 0, 5000)
        assert info(rounds, "b").last_push_unix_ms == 5000
        with (
            pytest.raises(NonfiniteGradient),
            rounds.job.noting_rejections("a"),
        ):
            raise NonfiniteGradient(parameter="a", value=np.nan, index=0)
        assert info(rounds, "a").rejections_by_reason == {"NONFINITE_GRADIENT": 1}
        assert (info(rounds, "a").rejections, info(rounds, "b").rejections) == (1, 0)

    play(scenario, workers=2)


def test_a_push_that_is_added_up_becomes_part_of_the_step_that_comes_later():
    async def scenario(rounds: Rounds) -> None:
        await rounds.job.editor.update_job(JobUpdate("job", {"accumulate": 2}))
        await rounds.join("a", "b")
        pass_to(rounds, 1)
        first = rounds.upload("a")
        first.send_all(rounds.messages(random_arrays(1)))
        await first
        assert (info(rounds, "a").last_push_unix_ms, info(rounds, "a").last_step_unix_ms) == (1000, 0)
        pass_to(rounds, 4)
        second = rounds.upload("b")
        second.send_all(rounds.messages(random_arrays(2)))
        await second
        assert [info(rounds, worker).last_step_unix_ms for worker in "ab"] == [4000, 4000]

    play(scenario, workers=0)


def test_the_open_round_in_wall_time_whoever_moves_the_clock():
    async def scenario(rounds: Rounds) -> None:
        for worker in "abc":
            await rounds.job.join(worker, None, HERE)
        assert open_rounds(rounds.job, rounds.clock) == ()
        pass_to(rounds, 3)
        upload = rounds.upload("b")
        await until(lambda: info(rounds, "b").waiting)
        (found,) = open_rounds(rounds.job, rounds.clock)
        assert (found.opened_unix_ms, found.arrived, found.arriving) == (0, (), ("b",))
        upload.send_all(rounds.messages(random_arrays(1)))
        await until(lambda: open_rounds(rounds.job, rounds.clock)[0].arrived == ("b",))
        pass_to(rounds, 5)
        rounds.expire("c")
        rounds.clock.wall_seconds += 3600
        (found,) = open_rounds(rounds.job, rounds.clock)
        assert (found.step, found.unix_ms, found.opened_unix_ms) == (1, 3605000, 3603000)
        assert (found.arrived, found.places, found.deadline_unix_ms) == (("b",), 1, 0)
        assert [(each.name, each.active, each.ended, each.host) for each in found.missing] == [
            ("a", True, "", "here"),
            ("c", False, EXPIRED, "here"),
        ]
        assert found.release.endswith("; c was lost")
        rounds.job.pushes.withdraw("b", "the test is over")
        await upload.error()

    play(scenario, workers=3)
