"""The workers of a job: the epoch of each, and the mark of its last applied push."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from optd_server.engine.events import Mark
from optd_server.engine.progress import BEGINNING, Position
from optd_wire.errors import StaleEpoch
from optd_wire.values import GroupOptions, JobVersion, PushResult

Written = tuple[tuple[GroupOptions, ...], JobVersion]
"""The answer to a write of state: the options of all groups and the job's version after it."""
LEFT = "it has left"
"""Why the epoch of a worker that has left has ended."""
RAN_OUT = "its lease of "
"""Why the epoch of a worker has ended whose lease ran out; the length of the lease follows."""
WENT_BACK = "the server went back to version "
"""Why the epochs of all workers have ended after a restart or a rollback that lost steps; the version follows."""
REMEMBERED = 1024
"""How many names a job remembers. A worker without a name of its own takes a new one each time it starts."""


@dataclass(slots=True)
class Member:
    """One worker as its job remembers it.

    `sequence`, `reply` and `checksum` are the mark of its last push in this epoch.
    """

    name: str
    epoch: int = 0
    active: bool = False
    """Whether it has joined in this epoch, and has neither left nor expired."""
    fenced_by: str = ""
    """Why its epoch has ended, if it has."""
    sequence: int = 0
    reply: PushResult | None = None
    checksum: int = 0
    """That of the push's content; 0: unknown."""
    write_id: str = ""
    """The id of its last write of state; empty if that had no id."""
    written: Written | None = None
    """The answer to that write."""
    pushes: int = 0
    staleness: int = 0
    """The staleness of its last push, in versions."""
    previous_epoch: int = 0
    """The last epoch before this one in which one of its pushes was applied."""
    previous_sequence: int = 0
    """The last push that was applied in that epoch."""
    session_id: str = ""
    """The session that joined last; empty if it has not named itself."""
    joined: Position = BEGINNING
    """Where the job was when it joined last."""
    last_rounds: dict[int, Position] = field(default_factory=dict)
    """By fragment, the end of the last round that a push of this session was in; 0: of the whole model."""

    def answer_to(self, write_id: str) -> Written | None:
        """Return the answer to its last write of state, if that write had this id."""
        return self.written if write_id and self.write_id == write_id else None


@dataclass(slots=True)
class Members:
    """The workers of one job, in the order in which their names were first seen. No epoch is ever reused."""

    by_name: dict[str, Member] = field(default_factory=dict)
    forgotten_epoch: int = 0
    """The highest epoch of all forgotten names. New epochs are above it."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self.by_name.values())

    def copy(self) -> "Members":
        """Return equal members that share nothing with these."""
        copies = {name: replace(each, last_rounds=dict(each.last_rounds)) for name, each in self.by_name.items()}
        return Members(copies, self.forgotten_epoch)

    @property
    def last_epoch(self) -> int:
        """The highest epoch that was ever assigned."""
        return max([self.forgotten_epoch, *(member.epoch for member in self)])

    def find(self, name: str) -> Member | None:
        """Return the worker if it has joined and is still remembered."""
        return self.by_name.get(name)

    def next_epoch(self, name: str) -> int:
        """Return the epoch that `name` would get if it joined now."""
        member = self.by_name.get(name)
        if member is not None:
            return max(member.epoch, self.forgotten_epoch) + 1
        leaving = self.to_forget(name)
        known = 0 if leaving is None else self.by_name[leaving].epoch
        return max(self.forgotten_epoch, known) + 1

    def to_forget(self, name: str) -> str | None:
        """Return the name to forget to make room for `name`; None if there is room.

        It is the oldest one of those that have left; if there is none, of those whose epochs have ended otherwise.
        """
        if name in self.by_name or len(self.by_name) < REMEMBERED:
            return None
        gone = [member for member in self if not member.active]
        return next((member.name for member in gone if member.fenced_by == LEFT), gone[0].name if gone else None)

    def check_unclaimed(self, name: str, job: str, epoch: int, session_id: str) -> None:
        """Raise `StaleEpoch` if a session other than this one has joined as `name` since it had `epoch`."""
        member = self.by_name.get(name)
        if member is None or member.epoch <= epoch or (session_id and member.session_id == session_id):
            return
        why = f"its name was joined again and has epoch {member.epoch}"
        raise StaleEpoch(worker=name, job=job, epoch=epoch, why=why)

    def join(self, name: str, epoch: int, session_id: str, at: Position) -> Member:
        """Assign `name` an epoch, which fences the worker that had the name before. The job is `at` this position."""
        forgotten = self.to_forget(name)
        if forgotten is not None:
            self.forgotten_epoch = max(self.forgotten_epoch, self.by_name.pop(forgotten).epoch)
        member = self.by_name.setdefault(name, Member(name))
        if member.sequence:
            # A worker that has pushed nothing since its last join may never have received the answer to that join. It
            # still needs to learn how far the epoch before that one came, so that stays.
            member.previous_epoch, member.previous_sequence = member.epoch, member.sequence
        if not session_id or member.session_id != session_id:
            member.last_rounds = {}
        member.epoch, member.active, member.fenced_by, member.session_id = epoch, True, "", session_id
        member.joined = at
        member.sequence, member.reply, member.checksum = 0, None, 0
        return member

    def mark(self, mark: Mark, reply: PushResult, at: Position) -> None:
        """Record an applied push and the reply that a repeat of it gets. Its round ended `at` this position."""
        member = self.by_name.get(mark.worker)
        if member is None:  # the worker left while its push was in a step, and has been forgotten since
            return
        member.pushes += 1
        member.staleness = reply.staleness
        if member.epoch == mark.epoch:
            member.sequence, member.reply, member.checksum = mark.sequence, reply, mark.checksum
            if mark.fragment not in member.last_rounds:
                # In the order of their numbers: equal members are then equal in all they show.
                member.last_rounds = dict(sorted([*member.last_rounds.items(), (mark.fragment, at)]))
            member.last_rounds[mark.fragment] = at

    def fence(self, skipped: int, why: str) -> None:
        """End the epochs of all workers, and skip some epochs, which may have been assigned already."""
        self.forgotten_epoch = self.last_epoch + skipped
        for member in self:
            member.active, member.fenced_by = False, why

    def end(self, name: str, epoch: int, why: str) -> None:
        """End the epoch of a worker that has left or whose lease has expired."""
        member = self.by_name.get(name)
        if member is not None and member.epoch == epoch:
            member.active, member.fenced_by = False, why
