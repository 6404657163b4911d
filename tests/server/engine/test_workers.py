"""Who takes part in a job: epochs and marks, which last, and leases, which do not."""

import pytest
from tests.server.engine.clock import Clock

from optd_server.engine.events import Mark
from optd_server.engine.membership.leases import Leases
from optd_server.engine.membership.members import LEFT, REMEMBERED, WENT_BACK, Member, Members
from optd_server.engine.progress import BEGINNING, Position
from optd_wire.errors import LeaseExpired, RolledBack, StaleEpoch, UnknownWorker
from optd_wire.values import JobVersion, PushResult

REPLY = PushResult(JobVersion(3), 3, 1, False)


def mark(epoch: int, sequence: int) -> Mark:
    return Mark("w", epoch, sequence, staleness=0, known_revision=0, checksum=99)


class Workers:
    """The members and the leases of a job, kept in step as a job keeps them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.members = Members()
        self.leases = Leases("job", self.members, lease_seconds=10)

    def join(self, name: str) -> Member:
        member = self.members.join(name, self.members.next_epoch(name), "", BEGINNING)
        self.leases.begin(name, self.clock.monotonic())
        return member

    def check(self, name: str, epoch: int) -> Member:
        return self.leases.check(name, epoch, self.clock.monotonic())

    def expired(self, seconds: float) -> list[str]:
        """The workers whose leases end by then."""
        self.clock.pass_to(seconds)
        names = self.leases.expired(seconds)
        for name in names:
            self._end(name, self.leases.expiry)
        return names

    def leave(self, name: str) -> None:
        self._end(name, LEFT)

    def _end(self, name: str, why: str) -> None:
        self.leases.end(name, why)
        self.members.end(name, self.members.by_name[name].epoch, why)


def test_a_lease_holds_as_long_as_it_is_renewed():
    workers = Workers()
    member = workers.join("w")
    workers.clock.pass_to(9)
    assert workers.check("w", member.epoch) is member
    assert workers.expired(18.9) == []
    assert workers.expired(19) == ["w"]
    assert workers.expired(19) == []
    with pytest.raises(
        LeaseExpired, match=r"worker 'w' of job 'job' calls with epoch 1, but its lease of 10 s ran out"
    ):
        workers.check("w", 1)
    assert (member.active, workers.leases.holds("w"), workers.leases.active) == (False, False, 0)


def test_a_message_renews_a_lease_that_is_held_and_no_other():
    workers = Workers()
    workers.join("w")
    workers.clock.pass_to(9)
    workers.leases.renew("w", 1, 9)
    assert workers.expired(18.9) == []
    workers.leases.renew("w", 2, 18.9)  # of an epoch that it does not have
    workers.leases.renew("nobody", 1, 18.9)
    assert workers.expired(19) == ["w"]
    workers.leases.renew("w", 1, 19)
    with pytest.raises(LeaseExpired):
        workers.check("w", 1)


def test_a_name_that_nobody_has_taken_can_be_resumed_and_one_that_was_taken_cannot():
    workers = Workers()
    workers.join("w")
    workers.expired(10)
    workers.members.check_unclaimed("w", "job", 1, "mine")
    workers.members.join("w", 2, "mine", BEGINNING)
    workers.members.check_unclaimed("w", "job", 1, "mine")  # the answer to that join was lost
    for other in ("another's", ""):
        with pytest.raises(StaleEpoch, match="its name was joined again and has epoch 2") as caught:
            workers.members.check_unclaimed("w", "job", 1, other)
        assert not isinstance(caught.value, LeaseExpired)
    workers.members.join("w", 3, "", BEGINNING)
    for unnamed in ("mine", ""):
        with pytest.raises(StaleEpoch, match="epoch 3"):
            workers.members.check_unclaimed("w", "job", 2, unnamed)


def test_20_time_that_stands_still_or_jumps_ahead_of_a_renewal_ends_no_lease_early():
    workers = Workers()
    workers.clock.pass_to(1e9)
    workers.join("w")
    assert workers.expired(1e9 - 3600) == []
    assert workers.leases.active == 1


def test_a_server_that_starts_anew_knows_why_an_epoch_is_over_and_takes_nobody_for_alive():
    """Leases are not kept; what has happened to an epoch is."""
    workers = Workers()
    workers.join("gone")
    workers.join("there")
    workers.expired(10)
    workers.join("there")
    started = Leases("job", workers.members, lease_seconds=10)
    assert (started.active, started.expired(1e9)) == (0, [])
    with pytest.raises(LeaseExpired, match="its lease of 10 s ran out"):
        started.check("gone", 1, 0)
    with pytest.raises(StaleEpoch):
        started.check("there", 2, 0)


def test_an_epoch_that_was_assigned_in_a_version_that_is_lost_has_gone_back():
    """The worker of a snapshot has joined again since; then the server is killed, and comes back with the snapshot."""
    workers = Workers()
    workers.join("w")
    workers.members.fence(1000, f"{WENT_BACK}3, the last that its disk has")
    workers.leases = Leases("job", workers.members, lease_seconds=10)
    for epoch, why in ((1, "went back to version 3, the last"), (2, "went back to a version in which its epoch was 1")):
        with pytest.raises(RolledBack, match=why):
            workers.check("w", epoch)
    assert workers.join("w").epoch == 1002
    with pytest.raises(StaleEpoch, match="its name was joined again"):
        workers.check("w", 2)


def test_joining_again_fences_the_old_epoch_and_forgets_its_mark():
    workers = Workers()
    workers.join("w")
    workers.members.mark(mark(1, 7), REPLY, Position(3))
    member = workers.join("w")
    assert (member.epoch, member.sequence, member.reply, member.pushes) == (2, 0, None, 1)
    with pytest.raises(StaleEpoch, match="its name was joined again and has epoch 2"):
        workers.check("w", 1)


def test_what_became_of_a_push_is_told_to_each_join_until_there_is_another_one():
    """The answer to a join may be lost, and the worker joins again."""
    workers = Workers()
    workers.join("w")
    workers.members.mark(mark(1, 7), REPLY, Position(3))
    for _ in range(2):
        member = workers.join("w")
        assert (member.previous_epoch, member.previous_sequence) == (1, 7)
    workers.members.mark(mark(3, 1), REPLY, Position(3))
    member = workers.join("w")
    assert (member.previous_epoch, member.previous_sequence) == (3, 1)


def test_epochs_never_repeat_even_after_leaving():
    workers = Workers()
    workers.join("w")
    workers.leave("w")
    with pytest.raises(StaleEpoch, match="it has left"):
        workers.check("w", 1)
    assert workers.join("w").epoch == 2


def test_a_mark_of_an_old_epoch_does_not_touch_the_new_one():
    workers = Workers()
    workers.join("w")
    workers.join("w")
    workers.members.mark(mark(1, 7), REPLY, Position(3))
    member = workers.members.find("w")
    assert (member.sequence, member.reply, member.pushes) == (0, None, 1)


def test_the_end_of_an_old_epoch_does_not_end_the_new_one():
    workers = Workers()
    workers.join("w")
    member = workers.join("w")
    workers.members.end("w", 1, LEFT)
    assert (member.active, member.fenced_by) == (True, "")


def test_a_worker_that_never_joined_is_unknown():
    with pytest.raises(UnknownWorker, match="worker 'x' has not joined job 'job'"):
        Workers().check("x", 1)


def test_names_that_have_left_are_forgotten_in_the_end_and_their_epochs_are_not_given_again():
    workers = Workers()
    given = set()
    for number in range(3 * REMEMBERED):
        member = workers.join(f"w{number % (REMEMBERED + 7)}")
        assert (member.name, member.epoch) not in given
        given.add((member.name, member.epoch))
        workers.leave(member.name)
    assert len(list(workers.members)) == REMEMBERED
    stays = workers.join("stays")
    for number in range(2 * REMEMBERED):
        workers.join(f"x{number}")
        workers.leave(f"x{number}")
    assert workers.members.find("stays") is stays
    assert len(workers.leases._by_name) <= REMEMBERED + 1


def test_a_speed_is_that_of_the_lease_and_what_is_no_speed_is_ignored():
    workers = Workers()
    member = workers.join("w")

    def speed() -> float:
        return workers.leases.info(member, workers.clock.monotonic(), waiting_since=None).speed

    assert speed() == 0
    workers.leases.note_speed("w", 2.5)
    for told in (0.0, -1.0, float("nan"), float("inf")):
        workers.leases.note_speed("w", told)
        assert speed() == 2.5
    workers.leases.note_speed("nobody", 9.0)
    assert workers.leases.holders() == ["w"]
    workers.join("w")
    assert speed() == 0, "another process may have joined under the name"
    workers.leave("w")
    workers.leases.note_speed("w", 2.5)
    assert speed() == 0


@pytest.mark.parametrize(("session_id", "kept"), [("mine", {0: Position(3)}), ("another's", {}), ("", {})])
def test_the_rounds_of_a_session_are_remembered_when_it_joins_again(session_id, kept):
    members = Members()
    members.join("w", 1, "mine", BEGINNING)
    members.mark(mark(1, 7), REPLY, Position(3))
    member = members.join("w", 2, session_id, Position(4, 1))
    assert (member.joined, member.last_rounds) == (Position(4, 1), kept)
    assert members.copy().by_name["w"].last_rounds is not member.last_rounds
