"""What each policy decides: tables of what happens, one after the other."""

import pytest
from tests.server.engine.course import Course

from optd_server.engine.progress import Position
from optd_server.engine.rounds.policies.base import (
    EndedRound,
    HoldPush,
    LeaveOut,
    LostWorker,
    MakeStep,
    Offer,
    PushId,
    RefusePush,
    TooLate,
    WakeAt,
)
from optd_server.engine.rounds.policies.registry import decider_of
from optd_wire.values import Async, Bounded, Policy, Sync


def push(worker: str, sequence: int = 1, epoch: int = 1) -> PushId:
    return PushId(worker, epoch, sequence)


# Tables: what happens, and what is decided


class Table:
    """A policy, and a line for each thing that happens to it.

    `b+3` offers a push of b of version 3 (without a number: of the job's version), `b!`: its gradient has arrived.
    `applied a b` applies a round as a step, `added a b` accumulates it; `late? b+3` asks whether such a push is late.
    """

    def __init__(self, policy: Policy, version: int = 0, last_rounds: dict[str, Position] | None = None) -> None:
        self.progress = Course(Position(version))
        self.progress.last_rounds = {(worker, 0): position for worker, position in (last_rounds or {}).items()}
        self.decider = decider_of(policy, self.progress)
        self.now = 0.0
        self.sequences: dict[str, int] = {}

    def play(self, line: str) -> str:
        """Lets one thing happen; returns what is decided, in short."""
        what, _, rest = line.partition(" ")
        match what:
            case "join" | "resume" | "left" | "expired":
                if what == "join":
                    self.progress.join(rest)
                event = {"join": "joined", "resume": "resumed"}.get(what, what)
                return self._told(getattr(self.decider, event)(rest, self.now))
            case "at":
                self.now = float(rest)
                return self._told(self.decider.tick(self.now))
            case "applied" | "added" | "skipped":
                names, _, fragment = rest.partition("/")
                workers = tuple(names.split())
                accumulated, skipped = what == "added", what == "skipped"
                self.progress.end(workers, int(fragment or 0), accumulated=accumulated, skipped=skipped)
                return self._told(self.decider.ended(EndedRound(workers, int(fragment or 0)), self.now))
            case "late?":
                return "yes" if self.decider.is_late(self._offer(rest)) else "no"
            case "back":
                return self._told(self.decider.withdrawn(self._push(rest), self.now))
        if what.endswith("!"):
            return self._told(self.decider.arrived(self._push(what[:-1]), self.now))
        worker = what.partition("+")[0]
        self.sequences[worker] = self.sequences.get(worker, 0) + 1
        return self._told(self.decider.offered(self._offer(what), self.now))

    def _offer(self, text: str) -> Offer:
        worker, _, more = text.partition("+")
        base, _, fragment = more.partition("/")
        return Offer(self._push(worker), int(base) if base else self.progress.now.version, int(fragment or 0))

    def _push(self, worker: str) -> PushId:
        return push(worker, self.sequences.get(worker, 1))

    def _told(self, decisions) -> str:
        told = []
        for decision in decisions:
            match decision:
                case MakeStep(pushes):
                    told.append("step " + " ".join(each.worker for each in pushes))
                case RefusePush(refused, TooLate(_)):
                    told.append(f"late {refused.worker}")
                case RefusePush(refused, LostWorker(lost, how)):
                    told.append(f"fail {refused.worker}: {lost} {how.split()[1].strip(':')}")
                case LeaveOut(workers):
                    told.append("without " + " ".join(workers))
                case WakeAt(seconds):
                    told.append(f"wake {seconds:g}")
                case HoldPush():
                    pass
        return ", ".join(told)


TABLES: dict[str, tuple[Policy, int, str]] = {
    "async makes a step of every push": (Async(), 0, "b -> step b; a -> step a; b!; expired b; c -> step c"),
    "sync of one worker makes a step of every push": (Sync(1), 0, "a; a! -> step a; b; b! -> step b"),
    "a round is in the order of names": (Sync(3), 0, "c; a; b; a!; c!; b! -> step a b c"),
    "a push counts when its gradient is there": (Sync(2), 0, "a; b; b!; a! -> step a b"),
    "a push that comes after its round is in the next one": (
        Sync(2),
        0,
        "a; b; a!; b! -> step a b; applied a b; b; b!; c; c! -> step b c",
    ),
    "a push that is withdrawn counts no more, and its worker counts again": (
        Sync(2),
        0,
        "a; a!; back a; b; b!; a; a! -> step a b",
    ),
    "a sender that dies in mid-upload costs the others nothing": (Sync(2), 0, "a; b; b!; back a; c; c! -> step b c"),
    "sync waits for one that takes a place": (
        Sync(2),
        3,
        "join a; join b; a; a!; expired b; left b; at 99; join c; c; c! -> step a c",
    ),
    # A number of workers, which may die
    "a death lets the round go on": (Sync(2, on_death="continue"), 3, "join a; join b; a; a!; expired b -> step a"),
    "a leave does too": (Sync(2, on_death="continue"), 3, "join a; join b; a; a!; left b -> step a"),
    "nothing goes on before all have come": (
        Sync(2, on_death="continue"),
        0,
        "join a; a; a!; join b; expired b; join b; b; b! -> step a b; applied a b; a; a!; expired b -> step a",
    ),
    "who comes back counts again": (
        Sync(2, on_death="continue"),
        3,
        "join a; join b; expired b; a; a! -> step a; applied a; join b; a; a!; b; b! -> step a b",
    ),
    "who was lost in a round is late for it": (
        Sync(2, on_death="continue"),
        3,
        "join a; join b; a; a!; expired b -> step a; applied a; join b; b+3 -> late b; b+4; b!; a; a! -> step a b",
    ),
    "a death fails the round, and tells each worker once": (
        Sync(3, on_death="fail"),
        3,
        "join a; join b; join c; a; a!; expired c -> fail a: c lost; b -> fail b: c lost; b; b!; a; a!; join d; d; "
        "d! -> step a b d",
    ),
    "one that leaves fails it too": (Sync(2, on_death="fail"), 0, "join a; join b; a; left b -> fail a: b left"),
    # Those that live
    "live takes one push of each": (Sync("live"), 0, "join a; join b; a; a!; b; b! -> step a b"),
    "live shrinks": (Sync("live"), 0, "join a; join b; a; a!; expired b -> step a"),
    "live grows, also in an open round": (Sync("live"), 0, "join a; join b; a; a!; join c; b; b!; c; c! -> step a b c"),
    "live with a quorum waits for it": (Sync("live", quorum=2), 3, "join a; a; a!; join b; b; b! -> step a b"),
    "live fails if it says so": (
        Sync("live", on_death="fail"),
        3,
        "join a; join b; a; a!; expired b -> fail a: b lost",
    ),
    # Quorums
    "a quorum is enough at once": (
        Sync(3, quorum=2),
        3,
        "join a; join b; join c; a; a!; b; b! -> step a b; applied a b -> without c; c+3 -> late c; c+4; "
        "c!; a; a! -> step a c; applied a c -> without b",
    ),
    "a grace window counts from the first arrival": (
        Sync(3, quorum=2, grace=5.0),
        3,
        "join a; join b; join c; at 10; a; a!; at 12; b; b! -> wake 15; at 14 -> wake 15; at 15 -> step a b; "
        "applied a b -> without c",
    ),
    "who comes within the window is in": (
        Sync(3, quorum=2, grace=5.0),
        3,
        "join a; join b; join c; a; a!; b; b! -> wake 5; c; c! -> step a b c",
    ),
    "a quorum that comes after the window closes it at once": (
        Sync(3, quorum=2, grace=5.0),
        3,
        "join a; join b; join c; a; a!; at 9; b; b! -> step a b",
    ),
    "who is on its way when the window ends is late, as soon as there is something to pull": (
        Sync(3, quorum=2, grace=5.0),
        3,
        "join a; join b; join c; a; a!; c; b; b! -> wake 5; at 5 -> step a b; "
        "applied a b -> late c, without c; c+3 -> late c; c; c!; a; a! -> wake 10; b; b! -> step a b c",
    ),
    "nobody waits for a window when all that live are there": (
        Sync(3, quorum=2, grace=5.0),
        3,
        "join a; join b; join c; a; a!; b; b! -> wake 5; expired c -> step a b",
    ),
    "but in the first round those that start may still come": (
        Sync(3, quorum=2, grace=5.0),
        0,
        "join a; join b; a; a!; b; b! -> wake 5; join c; c; c! -> step a b c",
    ),
    "a grace window that adapts waits for all in its first round, and then as long as a few rounds take": (
        Sync(2, quorum=1, grace="auto"),
        3,
        "join a; join b; a; a!; at 2; b; b! -> step a b; applied a b; at 900; a; a!; at 903; b; b! -> step a b; "
        "applied a b; at 3600; a; a! -> wake 3609; at 3609 -> step a",
    ),
    "in its first round it waits some seconds for those that have not joined yet": (
        Sync(3, quorum=2, grace="auto"),
        0,
        "join a; join b; at 5; a; a!; b; at 7; b! -> wake 15; at 15 -> step a b",
    ),
    "who joins meanwhile is waited for": (
        Sync(3, quorum=2, grace="auto"),
        0,
        "join a; join b; at 5; a; a!; b; at 7; b! -> wake 15; join c; at 15; at 99; c; c! -> step a b c",
    ),
    # Time
    "a round whose time is up goes without the others": (
        Sync(3, round_seconds=4.0),
        3,
        "join a; join b; join c; at 1; a; a! -> wake 5; b; b! -> wake 5; at 5 -> step a b",
    ),
    "time counts from the first gradient": (Sync(2, round_seconds=4.0), 3, "join a; at 9; a; at 20; a! -> wake 24"),
    "time does not replace a quorum": (
        Sync(3, quorum=2, grace=9.0, round_seconds=4.0),
        3,
        "join a; join b; join c; a; a!; at 4; at 50; b; b! -> step a b",
    ),
    # Late pushes
    "an earlier round is over too": (
        Sync(2, quorum=1),
        3,
        "join a; join b; a; a! -> step a; applied a -> without b; a; a! -> step a; applied a -> without b; "
        "b+3 -> late b; b+3 -> late b; b+5; b! -> step b",
    ),
    "who was in may push on older weights": (
        Sync(2, quorum=1),
        3,
        "join a; join b; a; a! -> step a; applied a -> without b; a+3; a! -> step a",
    ),
    "one that joined anew with an old gradient is late": (
        Sync("live"),
        3,
        "join a; join b; a; a!; expired b -> step a; applied a; join b; b+3 -> late b; b+4; b!; a; a! -> step a b",
    ),
    "a window counts from the first gradient that is still there": (
        Sync(3, quorum=1, grace=9.0),
        3,
        "join a; join b; join c; a; at 1; a! -> wake 10; at 3; b; b! -> wake 10; back a; at 10 -> wake 12; at 12 -> "
        "step b",
    ),
    "a gradient of older weights is late whichever round replaced them": (
        Sync(2, quorum=1),
        3,
        "join a; join b; b+2 -> late b; b+2 -> late b; b+3; b! -> step b",
    ),
    "of more workers than a round takes, who comes last is late": (
        Sync(2),
        3,
        "join a; join b; join c; a; b; c; b!; c! -> step b c; a!; applied b c -> late a, without a; a+3 -> late a; "
        "a; a!; b; b! -> step a b",
    ),
    "a round that filled while another one was in its step is late as a whole": (
        Sync(1),
        3,
        "join a; join b; a; a! -> step a; b; b! -> step b; late? b+3 -> no; applied a -> without b; late? b+3 -> yes; "
        "late? a+3 -> no",
    ),
    "a round that comes to nothing makes nobody late": (
        Sync(2),
        3,
        "join a; join b; join c; a; b; c; a!; b! -> step a b; c!; skipped a b; a; a! -> step a c",
    ),
    "a replacement makes the round whole, and who was slow is late": (
        Sync(3, quorum=2, grace=9.0),
        3,
        "join a; join b; join c; join d; a; a!; b; b! -> wake 9; d; d! -> step a b d; applied a b d -> without c; "
        "c+3 -> late c; c; c!; a; a! -> wake 9; b; b! -> step a b c",
    ),
    "one on its way when a quorum closes is late": (
        Sync(2, quorum=1, grace=9.0),
        3,
        "join a; join b; join c; c; a; a! -> wake 9; b; b! -> step a b; applied a b -> late c, without c",
    ),
    # Accumulated rounds
    "an accumulated round leaves the weights: who has missed it is late once": (
        Sync(2, quorum=1),
        3,
        "join a; join b; a; a! -> step a; added a -> without b; b+3 -> late b; b+3; b! -> step b; added b -> "
        "without a; a+3 -> late a; a+3; a! -> step a",
    ),
    "who joins between accumulated rounds has missed none": (
        Sync(2, quorum=1),
        3,
        "join a; a; a! -> step a; added a; join b; b+3; b! -> step b",
    ),
    "a step of what was accumulated makes waiting gradients late": (
        Sync(2),
        3,
        "join a; join b; a; a! ; b; b! -> step a b; added a b; a+3; a!; applied -> late a; a; a!; b; b! -> step a b",
    ),
    # Fragments
    "the last round of a fragment makes its gradients late, and no others": (
        Sync(2, quorum=1),
        0,
        "join a; join b; a+0/1; a! -> step a; applied a/1 -> without b; b+0/2; back b; b+0/1 -> late b; b+1/1; "
        "b! -> step b",
    ),
    "each fragment has rounds of its own": (
        Sync(2),
        0,
        "a+0/1; a!; b+0/2; b!; b+0/1; a+0/2; a! -> step a b",
    ),
    "workers that wait for each other in two rounds may be joined by another one": (
        Sync(3),
        3,
        "join a; join b; a+0/1; a!; b+0/2; b!; join c; c+0/1; c! -> late b; b+0/1; b! -> step a b c",
    ),
    "workers that wait for each other in two rounds are brought together": (
        Sync(2),
        3,
        "join a; join b; a+0/1; a!; b+0/2; b! -> late b; b+0/1; b! -> step a b",
    ),
    # Bounded
    "bounded lets everybody go who is not too far ahead": (
        Bounded(1),
        0,
        "join a; join b; a -> step a; applied a; a -> step a; applied a; a; b -> step b; applied b -> step a",
    ),
    "bounded by 0 is lockstep": (
        Bounded(0),
        0,
        "join a; join b; a -> step a; applied a; a; b -> step b; applied b -> step a",
    ),
    "bounded does not wait for the dead": (
        Bounded(0),
        0,
        "join a; join b; a -> step a; applied a; a; expired b -> step a",
    ),
    "who joins again is where it was": (
        Bounded(0),
        0,
        "join a; join b; a -> step a; applied a; expired a; join a; a; b -> step b; applied b -> step a",
    ),
    "nor for one that is new": (
        Bounded(0),
        0,
        "join a; a -> step a; applied a; a -> step a; applied a; join b; a -> step a; applied a; a; b -> step b; "
        "applied b -> step a",
    ),
    "a push that is withdrawn is not stepped": (
        Bounded(0),
        0,
        "join a; join b; a -> step a; applied a; a; back a; b -> step b; applied b",
    ),
}


@pytest.mark.parametrize(("policy", "version", "script"), TABLES.values(), ids=TABLES)
def test_what_is_decided(policy, version, script):
    table = Table(policy, version)
    for line in script.split(";"):
        event, _, expected = line.strip().partition(" -> ")
        decided = table.play(event.strip())
        wakes_again = decided.startswith("wake") and not expected
        assert decided == expected or wakes_again, f"at {event!r} of {script!r}"


@pytest.mark.parametrize(
    ("at", "late"),
    [
        ({"a": Position(3), "b": Position(3)}, []),
        ({"a": Position(3)}, ["b"]),
        ({"a": Position(3), "b": Position(2)}, ["b"]),
    ],
)
def test_after_a_restart_it_follows_from_the_marks_who_is_late(at, late):
    table = Table(Sync(2), 3, at)
    for line in ("resume a", "resume b"):
        assert not table.play(line)
    assert [table.play("a+2"), table.play("b+2")] == [f"late {each}" if each in late else "" for each in "ab"]


def test_an_open_round_tells_what_it_waits_for():
    table = Table(Sync(4, quorum=2, grace=5.0), 3)
    for line in ("join a", "join b", "join c", "at 10", "a", "b", "a!"):
        table.play(line)
    (status,) = table.decider.status(11.0)
    assert (status.opened, status.arrived, status.arriving, status.missing) == (10.0, ("a",), ("b",), ("c",))
    assert (status.places, status.deadline) == (1, None)
    assert status.release == "pushes of b, c and 1 more worker to join; 1 more push makes its quorum"
    table.play("b!")
    (status,) = table.decider.status(11.0)
    assert status.deadline == 15.0
    assert status.release == "pushes of c and 1 more worker to join; or its time, which is up in 4.0 s"


def test_a_worker_that_is_ahead_tells_whom_it_waits_for():
    table = Table(Bounded(1))
    for line in ("join a", "join b", "a", "applied a", "a", "applied a", "a"):
        table.play(line)
    (status,) = table.decider.status(0.0)
    assert (status.opened, status.arrived, status.missing) == (0.0, ("a",), ("b",))
    assert "until a is at most 1 steps ahead" in status.release
