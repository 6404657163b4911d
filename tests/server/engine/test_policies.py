"""Policies, without an event loop: whatever happens in whatever order, all of them keep the promises of `Policy`.

What each of them decides is in `test_policy_tables.py`.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.engine.course import Course

from optd_server.engine.progress import Position
from optd_server.engine.rounds.policies.base import (
    EndedRound,
    HoldPush,
    LeaveOut,
    MakeStep,
    Offer,
    PushId,
    RefusePush,
    WakeAt,
)
from optd_server.engine.rounds.policies.grace import Grace
from optd_server.engine.rounds.policies.registry import decider_of, policy_of
from optd_wire.errors import InvalidPolicy
from optd_wire.values import Async, Bounded, Exponential, JobSpec, Policy, Sync

POLICIES = [
    Async(),
    Bounded(0),
    Bounded(2),
    Sync(1),
    Sync(2),
    Sync(3),
    Sync(5),
    Sync("live"),
    Sync("live", quorum=2, grace=1.5),
    Sync(4, quorum=2),
    Sync(4, quorum=2, grace="auto"),
    Sync(4, quorum=3, grace=2.0, round_seconds=5.0, on_death="continue"),
    Sync(3, round_seconds=3.0),
    Sync(3, on_death="continue"),
    Sync(3, on_death="fail"),
    Sync("live", on_death="fail"),
]
WORKERS = "abcdef"


@pytest.mark.parametrize(
    ("policy", "slots", "most", "planned"),
    [
        (Async(), 4, 1, 1),
        (Bounded(3), 4, 1, 1),
        (Sync(1), 1, 1, 1),
        (Sync(8), 1, 8, 8),
        (Sync(4096), 1, 4096, 4096),
        (Sync("live"), 1, 4096, 1),
    ],
)
def test_what_memory_is_planned_for(policy, slots, most, planned):
    decider = decider_of(policy)
    assert (decider.slots, decider.most, decider.planned) == (slots, most, planned)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Sync(-1), r"policy sync: workers must be in \[1, 4096\] or 'live', got -1"),
        (Sync(0), "got 0"),
        (Sync(4097), "got 4097"),
        (Sync(4, quorum=0), r"quorum must be in \[1, 4\], got 0"),
        (Sync(4, quorum=5), "got 5"),
        (Sync("live", quorum=0), r"\[1, 4096\]"),
        (Sync(4, grace=1.0), "there is no quorum; got grace 1.0"),
        (Sync(4, quorum=2, grace=-1.0), r"grace must be in \[0, inf\) seconds or 'auto', got -1"),
        (Sync(4, quorum=2, grace=float("nan")), "got nan"),
        (Sync(4, round_seconds=0.0), r"round_seconds must be in \(0, inf\), got 0"),
        (Sync("live", on_death="wait"), "on_death must be 'continue' or 'fail' if workers is 'live', got 'wait'"),
        (Async(Exponential(-1.0)), r"policy async: alpha of staleness must be in \[0, inf\), got -1"),
        (Async(Exponential(0.1, 0.0)), r"cutoff of staleness must be in \(0, inf\), got 0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_bound(policy, says):
    with pytest.raises(InvalidPolicy, match=says):
        decider_of(policy)


def test_a_job_whose_creator_names_no_policy_is_async():
    assert policy_of(JobSpec("job", "sgd", {}, ())) == Async()
    assert policy_of(JobSpec("job", "sgd", {}, (), Sync(2))) == Sync(2)


# The grace window


def rounds_of(grace: Grace, delays: dict[str, list[float]], pace: float = 1.0) -> None:
    """Rounds whose first gradient comes `pace` seconds after the end of the one before."""
    now = 0.0
    for number in range(max(map(len, delays.values()))):
        now += pace
        opened, last = now, 0.0
        for worker, each in delays.items():
            if number < len(each):
                grace.note(worker, each[number])
                last = max(last, each[number])
        now += last
        grace.note_round(opened, opened, now)


def test_a_window_that_adapts_begins_with_the_length_of_rounds():
    grace = Grace("auto")
    assert grace.seconds is None
    for seconds in (0.5, 2.0, 1.0):
        grace.note_round(0.0, 0.0, seconds)
    assert grace.seconds == 6.0, "three times the longest round"


@pytest.mark.parametrize(
    ("delays", "least", "most"),
    [
        ({"a": [0.0] * 9, "b": [0.0] * 9, "c": [0.3] * 9}, 0.3, 0.31),
        ({"a": [0.0] * 9, "b": [0.02, 0.0] * 4, "c": [0.2, 0.25, 0.3] * 3}, 0.3, 0.6),
        ({"a": [0.0] * 9, "b": [0.0] * 9, "c": [*[0.01] * 8, 0.4]}, 0.4, 0.41),
        ({"a": [0.0] * 9, "b": [0.1] * 9, "c": [*[0.1] * 8, 60.0]}, 0.1, 0.11),
        ({"a": [0.0] * 9, "b": [0.1] * 9, "c": [5.0] * 9}, 0.1, 0.11),
        ({"a": [0.0] * 9, "b": [0.0] * 9}, 0.1, 0.1),
    ],
    ids=["a slower one", "spread", "late once by a little", "a stall", "one that is far too slow", "together"],
)
def test_a_window_that_adapts_waits_for_all_who_keep_pace(delays, least, most):
    grace = Grace("auto")
    rounds_of(grace, delays)
    assert grace.seconds is not None
    assert least <= grace.seconds <= most


def test_a_worker_that_has_gone_is_not_waited_for():
    grace = Grace("auto")
    rounds_of(grace, {"a": [0.0] * 9, "b": [0.5] * 9})
    grace.forget("b")
    assert grace.seconds == 0.1


def test_a_pause_of_an_hour_is_not_a_pace():
    grace = Grace("auto")
    rounds_of(grace, {"a": [0.0] * 9, "b": [5.0] * 9})
    grace.note_round(3600.0, 3600.0, 3600.1)
    assert grace.seconds == 0.1


@pytest.mark.parametrize(("given", "seconds"), [(None, 0.0), (0.0, 0.0), (2.5, 2.5)])
def test_a_fixed_window_stays(given, seconds):
    grace = Grace(given)
    for _ in range(10):
        grace.note("w", 9.0)
    assert grace.seconds == seconds


# Whatever happens


class Shell:
    """Carries decisions out as a job does, and checks the promises of `Policy` at each of them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.progress = Course(Position(0))
        self.decider = decider_of(policy, self.progress)
        self.now = 0.0
        self.version = 0
        self.sequences = dict.fromkeys(WORKERS, 0)
        self.epochs = dict.fromkeys(WORKERS, 1)
        self.bases = dict.fromkeys(WORKERS, 0)
        """The version of each worker's weights."""
        self.live: set[str] = set()
        self.held: dict[PushId, Offer] = {}
        self.there: set[PushId] = set()
        self.ended: list[PushId] = []
        """What was part of a step, refused or withdrawn."""
        self.rounds: list[tuple[Offer, ...]] = []
        """The rounds that were applied."""
        self.due: list[tuple[Offer, ...]] = []
        """Rounds whose steps are not taken yet."""
        self.offered: list[PushId] = []
        self.wake: float | None = None

    def holds(self, worker: str) -> PushId | None:
        return next((each for each in self.held if each.worker == worker), None)

    # Events

    def offer(self, worker: str) -> None:
        if worker not in self.live:
            self.join(worker)
        in_step = any(each.id.worker == worker for each in self.due for each in each)
        if self.holds(worker) is not None or in_step:
            return  # of each worker one push at a time
        self.sequences[worker] += 1
        offered = Offer(PushId(worker, self.epochs[worker], self.sequences[worker]), self.bases[worker])
        self.offered.append(offered.id)
        self.held[offered.id] = offered
        self._carry_out(self.decider.offered(offered, self.now))

    def arrive(self, worker: str) -> None:
        found = self.holds(worker)
        if found is not None and self.decider.receives_first and found not in self.there:
            self.there.add(found)
            self._carry_out(self.decider.arrived(found, self.now))

    def withdraw(self, worker: str) -> None:
        found = self.holds(worker)
        if found is not None:
            del self.held[found]
            self.ended.append(found)
            self._carry_out(self.decider.withdrawn(found, self.now))

    def pull(self, worker: str) -> None:
        self.bases[worker] = self.version

    def join(self, worker: str) -> None:
        self.withdraw(worker)
        self.live.add(worker)
        self.epochs[worker] += 1
        self.sequences[worker] = 0
        self.progress.join(worker)
        self._carry_out(self.decider.joined(worker, self.now))

    def leave(self, worker: str) -> None:
        self.withdraw(worker)
        self.live.discard(worker)
        self._carry_out(self.decider.left(worker, self.now))

    def expire(self, worker: str) -> None:
        self.withdraw(worker)
        self.live.discard(worker)
        self._carry_out(self.decider.expired(worker, self.now))

    def tick(self, _: str) -> None:
        self._carry_out(self.decider.tick(self.now))

    def apply(self, _: str) -> None:
        """Take the step of the round that is due first; if one of its pushes is late, offer them again."""
        if not self.due:
            return
        pushes = self.due.pop(0)
        if any(self.decider.is_late(each) for each in pushes):
            for each in pushes:
                self.held[each.id] = each
                self.ended.remove(each.id)
                if self.decider.receives_first:
                    self.there.discard(each.id)
                self._carry_out(self.decider.offered(each, self.now))
                if each.id in self.held and self.decider.receives_first:
                    self.there.add(each.id)
                    self._carry_out(self.decider.arrived(each.id, self.now))
            return
        self.version += 1
        self.rounds.append(pushes)
        names = tuple(each.id.worker for each in pushes)
        for name in names:
            self.bases[name] = self.version
        self.progress.end(names, 0)
        self._carry_out(self.decider.ended(EndedRound(names, 0), self.now))

    def _carry_out(self, decisions) -> None:
        for decision in decisions:
            match decision:
                case MakeStep(pushes):
                    assert 1 <= len(pushes) <= self.decider.most
                    assert not self.decider.receives_first or self.there.issuperset(pushes)
                    self.due.append(tuple(self.held[each] for each in pushes))
                    for each in pushes:
                        self._end(each)
                case HoldPush(held):
                    assert held in self.held, "what is held has been offered, and not named since"
                case RefusePush(refused, _):
                    self._end(refused)
                case LeaveOut(workers):
                    assert set(workers) <= self.live
                case WakeAt(seconds):
                    self.wake = seconds
        for status in self.decider.status(self.now):
            assert status.release
            assert not set(status.missing) & {*status.arrived, *status.arriving}

    def _end(self, each: PushId) -> None:
        assert each in self.held, f"{each} comes out, and is not held"
        del self.held[each]
        self.ended.append(each)


ACTIONS = ["offer"] * 6 + ["arrive"] * 6 + ["apply"] * 3 + ["pull", "withdraw", "join", "leave", "expire", "tick"]
HAPPENINGS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(WORKERS), st.floats(0, 10)), max_size=60)


def quorum_of(policy: Sync) -> int:
    return policy.quorum or 1


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(HAPPENINGS)
def test_whatever_happens_the_promises_hold(policy, happenings):
    shell = Shell(policy)
    for action, worker, seconds in happenings:
        shell.now += seconds
        getattr(shell, action)(worker)
    assert len(shell.ended) == len(set(shell.ended)), "each push is named once, and nothing withdrawn comes out"
    assert sorted([*shell.ended, *shell.held], key=str) == sorted(shell.offered, key=str)
    for version, pushes in enumerate(shell.rounds):
        names = [each.id.worker for each in pushes]
        assert names == sorted(set(names)), "a round has one push of each worker, in the order of their names"
        if isinstance(policy, Sync):
            assert len(pushes) >= quorum_of(policy)
            can_shrink = (
                policy.quorum or policy.round_seconds or policy.workers == "live" or policy.on_death == "continue"
            )
            if not can_shrink:
                assert len(pushes) == policy.workers
            for each in pushes:
                later = [{other.id.worker for other in others} for others in shell.rounds[each.base : version]]
                assert all(each.id.worker in names for names in later), "a late push counts in no later round"
        else:
            assert len(pushes) == 1


class CountingShell(Shell):
    """Counts the steps of each worker as the bounded policy promises to."""

    def __init__(self, bound: int) -> None:
        super().__init__(Bounded(bound))
        self.bound = bound
        self.clocks: dict[str, int] = {}

    def join(self, worker: str) -> None:
        self.clocks[worker] = min((clock for name, clock in self.clocks.items() if name != worker), default=0)
        super().join(worker)

    def leave(self, worker: str) -> None:
        self.clocks.pop(worker, None)
        super().leave(worker)

    def expire(self, worker: str) -> None:
        self.clocks.pop(worker, None)
        super().expire(worker)

    def apply(self, _: str) -> None:
        for offers in self.due[:1]:
            if offers[0].id.worker in self.clocks:
                self.clocks[offers[0].id.worker] += 1
        super().apply(_)

    def _end(self, each: PushId) -> None:
        super()._end(each)
        mine = self.clocks[each.worker]
        assert mine - min(clock for clock in self.clocks.values()) <= self.bound


@given(HAPPENINGS, st.integers(0, 3))
def test_nobody_gets_further_ahead_than_the_bound(happenings, bound):
    shell = CountingShell(bound)
    for action, worker, seconds in happenings:
        shell.now += seconds
        getattr(shell, action)(worker)


@given(st.integers(1, 5), st.data())
def test_sync_makes_the_same_rounds_whatever_the_order_of_arrival(workers, data):
    """So the same gradients give the same bits."""
    rounds = set()
    for _ in range(2):
        shell = Shell(Sync(workers))
        for _ in range(3):
            for worker in data.draw(st.permutations(WORKERS[:workers])):
                shell.offer(worker)
            for worker in data.draw(st.permutations(WORKERS[:workers])):
                shell.arrive(worker)
            shell.apply("")
        rounds.add(tuple(tuple(each.id for each in pushes) for pushes in shell.rounds))
    assert len(rounds) == 1
