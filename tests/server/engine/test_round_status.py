"""What a policy tells of the round that it collects, as tables: what has happened, and what people see then."""

import pytest

from optd_server.engine.rounds.policies.base import PushId, RoundStatus
from optd_server.engine.rounds.policies.registry import decider_of
from optd_server.engine.rounds.policies.words import NAMED, awaited, listed
from optd_wire.values import Async, Policy, Sync

ASYNC, TWO, THREE = Async(), Sync(2), Sync(3)
TABLE: dict[str, tuple[Policy, str, RoundStatus]] = {
    "async holds no push": (ASYNC, "+a @a", RoundStatus()),
    "nobody is there": (TWO, "", RoundStatus(places=2, release="2 workers that have not joined yet")),
    "one is there": (
        TWO,
        "+a",
        RoundStatus(missing=("a",), places=1, release="a push of a; a worker that has not joined yet"),
    ),
    "all are there": (TWO, "+b +a", RoundStatus(missing=("a", "b"), release="pushes of a and b")),
    "one push is in": (
        TWO,
        "+a +b @b",
        RoundStatus(opened=2.0, arrived=("b",), missing=("a",), release="a push of a"),
    ),
    "the round was opened by its first push": (
        THREE,
        "+a +b +c @b @a",
        RoundStatus(opened=3.0, arrived=("a", "b"), missing=("c",), release="a push of c"),
    ),
    "any of several may come": (
        TWO,
        "+a +b +c @a",
        RoundStatus(opened=3.0, arrived=("a",), missing=("b", "c"), release="a push of b or c"),
    ),
    "more are there than it takes": (
        TWO,
        "+a +b +c",
        RoundStatus(missing=("a", "b", "c"), release="pushes of 2 of a, b and c"),
    ),
    "one was lost": (
        TWO,
        "+a +b @a !b",
        RoundStatus(2.0, ("a",), missing=("b",), places=1, release="a worker to replace b, which was lost"),
    ),
    "one has left": (
        TWO,
        "+a +b @a -b",
        RoundStatus(opened=2.0, arrived=("a",), missing=("b",), places=1, release="a worker to replace b, which left"),
    ),
    "the lost one is back": (
        TWO,
        "+a +b @a !b +b",
        RoundStatus(opened=2.0, arrived=("a",), missing=("b",), release="a push of b"),
    ),
    "another one has its place": (
        TWO,
        "+a +b @a !b +c",
        RoundStatus(opened=2.0, arrived=("a",), missing=("c",), release="a push of c"),
    ),
    "the last one that went is named": (
        TWO,
        "+a +b +c @a !c -b",
        RoundStatus(opened=3.0, arrived=("a",), missing=("b",), places=1, release="a worker to replace b, which left"),
    ),
    "a push was withdrawn": (TWO, "+a +b @a ~a", RoundStatus(missing=("a", "b"), release="pushes of a and b")),
    "a step was made": (TWO, "+a +b @a @b", RoundStatus(missing=("a", "b"), release="pushes of a and b")),
}
EVENTS = {"+": "joined", "-": "left", "!": "expired"}


@pytest.mark.parametrize(("policy", "story", "expected"), TABLE.values(), ids=TABLE)
def test_what_people_see(policy: Policy, story: str, expected: RoundStatus):
    """`+a` joins, `-a` leaves, `!a` expires, `@a` offers a push, `~a` withdraws it; each a second after the last."""
    decider = decider_of(policy)
    for second, (what, worker) in enumerate(story.split()):
        if what in EVENTS:
            getattr(decider, EVENTS[what])(worker, float(second))
        else:
            getattr(decider, "offered" if what == "@" else "withdrawn")(PushId(worker, 1, 1), float(second))
    assert decider.status(99.0) == expected
    assert decider.status(99.0) == expected, "looking changes nothing"


def test_of_many_workers_the_first_are_named():
    names = [f"w{number:02}" for number in range(NAMED + 3)]
    assert listed(names).endswith("w07 and 3 more")
    assert awaited(names, len(names), {}).startswith("pushes of w00, w01")
    assert awaited([], 0, {}) == ""
