"""Rounds with an adaptive grace window, played through with workers of given speeds, in made-up time."""

import heapq
import itertools
from collections.abc import Callable

import pytest
from tests.server.engine.course import Course

from optd_server.engine.progress import Position
from optd_server.engine.rounds.policies.base import EndedRound, MakeStep, Offer, PushId, RefusePush, WakeAt
from optd_server.engine.rounds.policies.registry import decider_of
from optd_wire.values import Sync

POLICY = Sync(3, quorum=2, grace="auto")
Pace = Callable[[int], float]
"""The seconds that a worker computes for its n-th push."""


class Play:
    """A sync job whose workers push, pull and compute the next gradient, for some seconds."""

    def __init__(self, policy: Sync, paces: dict[str, Pace], seconds: float) -> None:
        self.course = Course(Position(0))
        self.decider = decider_of(policy, self.course)
        self.paces = paces
        self.pushes = dict.fromkeys(paces, 0)
        self.late = dict.fromkeys(paces, 0)
        self.ends: list[float] = []
        """When each round was applied."""
        self._queue: list[tuple[float, int, str, int]] = []
        self._numbers = iter(range(1 << 30))
        for worker in paces:
            self.course.join(worker)
            self.decider.joined(worker, 0.0)
            self._compute(worker, 0.0)
        while self._queue and self._queue[0][0] < seconds:
            now, _, what, base = heapq.heappop(self._queue)
            self._happen(now, what, base)

    def _compute(self, worker: str, now: float) -> None:
        self.pushes[worker] += 1
        self._later(now + self.paces[worker](self.pushes[worker]), worker)

    def _later(self, when: float, what: str) -> None:
        heapq.heappush(self._queue, (when, next(self._numbers), what, self.course.now.version))

    def _happen(self, now: float, what: str, base: int) -> None:
        if what == "tick":
            self._carry_out(self.decider.tick(now), now)
            return
        push = PushId(what, 1, self.pushes[what])
        decisions = list(self.decider.offered(Offer(push, base), now))
        is_late = any(isinstance(each, RefusePush) for each in decisions)
        self._carry_out(decisions, now)
        if not is_late:
            self._carry_out(self.decider.arrived(push, now), now)

    def _carry_out(self, decisions, now: float) -> None:
        for decision in decisions:
            match decision:
                case WakeAt(seconds):
                    self._later(max(seconds, now), "tick")
                case RefusePush(push, _):
                    self.late[push.worker] += 1
                    self._compute(push.worker, now)
                case MakeStep(pushes):
                    workers = tuple(each.worker for each in pushes)
                    self.course.end(workers, 0)
                    self.ends.append(now)
                    self._carry_out(self.decider.ended(EndedRound(workers, 0), now), now)
                    for worker in workers:
                        self._compute(worker, now)


def jittered(seconds: float, *by: float) -> Pace:
    """A pace that is a little different each time."""
    return lambda number: seconds + by[number % len(by)]


def stalls_once(seconds: float, by: float) -> Pace:
    return lambda number: seconds + by * (number == 8)


def test_who_stalls_once_by_less_than_a_round_is_late_once():
    """The next round waits until it is in step with the others again."""
    played = Play(
        Sync(3, quorum=2, grace="auto"),
        {"a": jittered(0.5, 0, 0.01), "b": lambda _: 0.5, "c": stalls_once(0.5, 0.3)},
        30,
    )
    assert played.late == {"a": 0, "b": 0, "c": 1}


@pytest.mark.parametrize("slower", [1.02, 1.2, 1.8])
def test_a_slower_worker_that_keeps_pace_is_waited_for(slower):
    paces = {"a": jittered(0.5, 0, 0.01), "b": jittered(0.51, 0, 0.02), "c": jittered(0.5 * slower, 0, 0.01, 0.02)}
    played = Play(POLICY, paces, 30)
    assert played.late["c"] <= 2
    assert len(played.ends) >= 0.9 * 30 / (0.5 * slower + 0.02)


def test_one_that_is_far_too_slow_delays_nobody():
    """Once the first rounds are over, which wait as long as rounds take."""
    played = Play(POLICY, {"a": lambda _: 0.5, "b": jittered(0.5, 0, 0.05), "c": lambda _: 5.0}, 60)
    assert len([end for end in played.ends if end > 30]) >= 30 / 0.8  # the others, and a window of four spreads
    assert played.late["c"] > 3


def test_a_long_stall_delays_the_others_by_one_window():
    def stalled(number: int) -> float:
        return 20.0 if number == 10 else 0.5

    played = Play(POLICY, {"a": lambda _: 0.5, "b": jittered(0.5, 0, 0.05), "c": stalled}, 60)
    assert len(played.ends) >= 60 / 0.6
    assert played.late["c"] <= 3


def test_nobody_makes_a_round_take_more_than_twice_as_long():
    played = Play(
        Sync(3, quorum=2, grace="auto"), {"a": lambda _: 0.5, "b": lambda _: 0.5, "c": lambda n: 0.5 + 0.02 * n}, 60
    )
    lengths = [end - before for before, end in itertools.pairwise(played.ends)]
    assert max(lengths[8:]) <= 1.01
