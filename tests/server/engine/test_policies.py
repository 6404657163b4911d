"""Policies, without an event loop: what happens goes in, decisions come out.

Tables show what each policy does; whatever happens in whatever order, all of them keep the promises of `Policy`.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optd_server.engine.rounds.policies.base import (
    Decision,
    HoldPush,
    MakeStep,
    PushId,
    RefusePush,
    WakeAt,
)
from optd_server.engine.rounds.policies.registry import decider_of, policy_of
from optd_wire.errors import InvalidPolicy
from optd_wire.values import Async, JobSpec, Policy, Sync

POLICIES = [Async(), Sync(1), Sync(2), Sync(3), Sync(5)]
WORKERS = "abcdef"


def push(worker: str, sequence: int = 1, epoch: int = 1) -> PushId:
    return PushId(worker, epoch, sequence)


def step(*workers: str) -> MakeStep:
    return MakeStep(tuple(push(worker) for worker in workers))


def hold(worker: str, missing: int) -> HoldPush:
    return HoldPush(push(worker), f"pushes of {missing} more worker{'s' if missing > 1 else ''}")


# Tables: what happens, and what is decided

TABLES: dict[str, tuple[Policy, list[tuple[str, str, list[Decision]]]]] = {
    "async makes a step of every push": (
        Async(),
        [
            ("offered", "b", [step("b")]),
            ("offered", "a", [step("a")]),
            ("arrived", "b", []),
            ("expired", "b", []),
            ("offered", "c", [step("c")]),
        ],
    ),
    "sync of one worker makes a step of every push": (
        Sync(1),
        [("offered", "a", [step("a")]), ("offered", "b", [step("b")])],
    ),
    "sync makes a step of a round, in the order of names": (
        Sync(3),
        [
            ("offered", "c", [hold("c", 2)]),
            ("offered", "a", [hold("a", 1)]),
            ("offered", "b", [step("a", "b", "c")]),
        ],
    ),
    "whatever the order of arrival": (
        Sync(3),
        [
            ("offered", "b", [hold("b", 2)]),
            ("offered", "c", [hold("c", 1)]),
            ("offered", "a", [step("a", "b", "c")]),
        ],
    ),
    "a push that comes while its round is received belongs to the next one": (
        Sync(2),
        [
            ("offered", "a", [hold("a", 1)]),
            ("offered", "b", [step("a", "b")]),
            ("offered", "b", [hold("b", 1)]),
            ("arrived", "a", []),
            ("offered", "c", [step("b", "c")]),
        ],
    ),
    "a push that is withdrawn counts no more, and its worker counts again": (
        Sync(2),
        [
            ("offered", "a", [hold("a", 1)]),
            ("withdrawn", "a", []),
            ("offered", "b", [hold("b", 1)]),
            ("offered", "a", [step("a", "b")]),
        ],
    ),
    "workers that come and go make no difference to a round": (
        Sync(2),
        [
            ("joined", "a", []),
            ("joined", "b", []),
            ("joined", "c", []),
            ("offered", "a", [hold("a", 1)]),
            ("left", "b", []),
            ("expired", "c", []),
            ("tick", "", []),
            ("offered", "d", [step("a", "d")]),
        ],
    ),
}


@pytest.mark.parametrize(("policy", "rows"), TABLES.values(), ids=TABLES)
def test_what_is_decided(policy, rows):
    decider = decider_of(policy)
    for number, (event, worker, expected) in enumerate(rows):
        found = list(happens(decider, event, worker, float(number)))
        assert found == expected, f"row {number}: {event} {worker}"


def happens(decider, event, worker, now):
    match event:
        case "offered" | "arrived" | "withdrawn":
            return getattr(decider, event)(push(worker), now)
        case "tick":
            return decider.tick(now)
        case _:
            return getattr(decider, event)(worker, now)


@pytest.mark.parametrize(
    ("policy", "slots", "most"), [(Async(), 4, 1), (Sync(1), 1, 1), (Sync(8), 1, 8), (Sync(4096), 1, 4096)]
)
def test_what_memory_is_planned_for(policy, slots, most):
    decider = decider_of(policy)
    assert (decider.slots, decider.most) == (slots, most)


@pytest.mark.parametrize("workers", [-1, 0, 4097])
def test_a_number_of_workers_out_of_range_is_named_with_its_bound(workers):
    with pytest.raises(InvalidPolicy, match=rf"workers must be in \[1, 4096\], got {workers}"):
        decider_of(Sync(workers))


def test_a_job_whose_creator_names_no_policy_is_async():
    assert policy_of(JobSpec("job", "sgd", {}, ())) == Async()
    assert policy_of(JobSpec("job", "sgd", {}, (), Sync(2))) == Sync(2)


# Whatever happens


class Shell:
    """Carries decisions out as a job does, and checks the promises of `Policy` at each of them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.decider = decider_of(policy)
        self.now = 0.0
        self.sequences = dict.fromkeys(WORKERS, 0)
        self.epochs = dict.fromkeys(WORKERS, 1)
        self.held: dict[PushId, str] = {}
        """What is held, and what it waits for."""
        self.ended: list[PushId] = []
        """What was part of a step, refused or withdrawn."""
        self.steps: list[tuple[PushId, ...]] = []
        self.offered: list[PushId] = []

    def holds(self, worker: str) -> PushId | None:
        return next((each for each in self.held if each.worker == worker), None)

    # Events

    def offer(self, worker: str) -> None:
        if self.holds(worker) is not None:
            return  # of each worker one push at a time
        self.sequences[worker] += 1
        offered = PushId(worker, self.epochs[worker], self.sequences[worker])
        self.offered.append(offered)
        self.held[offered] = ""
        self._carry_out(self.decider.offered(offered, self.now))
        assert self.held.get(offered, "named") != "", "an offered push is held by name, or not at all"

    def arrive(self, worker: str) -> None:
        """The gradient of a push comes: of one whose step has begun."""
        begun = next((each for step in reversed(self.steps) for each in step if each.worker == worker), None)
        if begun is not None:
            self._carry_out(self.decider.arrived(begun, self.now))

    def withdraw(self, worker: str) -> None:
        found = self.holds(worker)
        if found is not None:
            del self.held[found]
            self.ended.append(found)
            self._carry_out(self.decider.withdrawn(found, self.now))

    def join(self, worker: str) -> None:
        self.withdraw(worker)
        self.epochs[worker] += 1
        self.sequences[worker] = 0
        self._carry_out(self.decider.joined(worker, self.now))

    def leave(self, worker: str) -> None:
        self.withdraw(worker)
        self._carry_out(self.decider.left(worker, self.now))

    def expire(self, worker: str) -> None:
        self.withdraw(worker)
        self._carry_out(self.decider.expired(worker, self.now))

    def tick(self, _: str) -> None:
        self._carry_out(self.decider.tick(self.now))

    def _carry_out(self, decisions) -> None:
        for decision in decisions:
            match decision:
                case MakeStep(pushes):
                    assert 1 <= len(pushes) <= self.decider.most
                    for each in pushes:
                        self._end(each)
                    self.steps.append(pushes)
                case HoldPush(held, waits_for):
                    assert held in self.held, "what is held has been offered, and not named since"
                    assert waits_for
                    self.held[held] = waits_for
                case RefusePush(refused, _):
                    self._end(refused)
                case WakeAt(seconds):
                    assert seconds > self.now
        assert len(self.held) < self.decider.most

    def _end(self, each: PushId) -> None:
        assert each in self.held, f"{each} comes out, and is not held"
        del self.held[each]
        self.ended.append(each)


ACTIONS = ["offer"] * 6 + ["arrive", "withdraw", "join", "leave", "expire", "tick"]
HAPPENINGS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(WORKERS), st.floats(0, 10)), max_size=60)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(HAPPENINGS)
def test_each_push_is_named_once_and_nothing_withdrawn_comes_out(policy, happenings):
    shell = Shell(policy)
    for action, worker, seconds in happenings:
        shell.now += seconds
        getattr(shell, action)(worker)
    assert len(shell.ended) == len(set(shell.ended))
    assert sorted([*shell.ended, *shell.held], key=str) == sorted(shell.offered, key=str)
    if isinstance(policy, Sync):
        assert {len(each) for each in shell.steps} <= {policy.workers}
        for made in shell.steps:
            names = [each.worker for each in made]
            assert names == sorted(set(names))
    else:
        assert shell.steps == [(each,) for each in shell.offered]


@given(st.integers(1, 5), st.data())
def test_sync_makes_the_same_rounds_whatever_the_order_of_arrival(workers, data):
    """So the same gradients give the same bits."""
    steps = set()
    for _ in range(2):
        shell = Shell(Sync(workers))
        for _ in range(3):
            for worker in data.draw(st.permutations(WORKERS[:workers])):
                shell.offer(worker)
        assert not shell.held
        steps.add(tuple(shell.steps))
    assert len(steps) == 1


@given(HAPPENINGS, st.sampled_from(POLICIES), HAPPENINGS)
def test_what_one_policy_held_another_takes_over(before, other, after):
    shell = Shell(Sync(5))
    for action, worker, seconds in before:
        shell.now += seconds
        getattr(shell, action)(worker)
    held, shell.held = list(shell.held), {}
    shell.policy, shell.decider = other, decider_of(other)
    for each in held:
        shell.held[each] = ""
        shell._carry_out(shell.decider.offered(each, shell.now))
    for action, worker, seconds in after:
        shell.now += seconds
        getattr(shell, action)(worker)
    assert len(shell.ended) == len(set(shell.ended))
    assert sorted([*shell.ended, *shell.held], key=str) == sorted(shell.offered, key=str)
