"""Who has taken part in a job: the epoch of each worker, and the mark of its last applied push."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from optd_wire.values import GroupOptions, JobVersion, PushResult

Written = tuple[tuple[GroupOptions, ...], JobVersion]
"""The answer to a write of state: the options of all groups after it, and where the job stood then."""
REMEMBERED = 1024
"""Names that a job remembers. A worker that is given no name takes a new one each time it starts."""


@dataclass(slots=True)
class Member:
    """What a job remembers of one worker. `sequence` and `reply` are the mark of its last push in this epoch."""

    name: str
    epoch: int = 0
    active: bool = False
    """Whether it has joined in this epoch, and has neither left nor expired."""
    fenced_by: str = ""
    """Why its epoch is over, if it is."""
    sequence: int = 0
    reply: PushResult | None = None
    write_id: str = ""
    """The id of its last write of state; empty if that had none."""
    written: Written | None = None
    """The answer to that write."""
    pushes: int = 0
    staleness: int = 0
    """Of its last push, in versions."""
    previous_epoch: int = 0
    """The last epoch before this one in which a push of it was applied, and the last such push."""
    previous_sequence: int = 0

    def answer_to(self, write_id: str) -> Written | None:
        """The answer to its last write of state, if that has this id."""
        return self.written if write_id and self.write_id == write_id else None


@dataclass(slots=True)
class Members:
    """The workers of one job, in the order in which their names were first seen. No epoch is ever given twice."""

    by_name: dict[str, Member] = field(default_factory=dict)
    forgotten_epoch: int = 0
    """The highest epoch of the names that are no longer remembered: new names begin behind it."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self.by_name.values())

    def copy(self) -> "Members":
        """Equal members."""
        return Members({name: replace(member) for name, member in self.by_name.items()}, self.forgotten_epoch)

    @property
    def last_epoch(self) -> int:
        """The highest epoch that was ever given."""
        return max([self.forgotten_epoch, *(member.epoch for member in self)])

    def find(self, name: str) -> Member | None:
        """The worker, if it has ever joined and is remembered."""
        return self.by_name.get(name)

    def next_epoch(self, name: str) -> int:
        """The epoch that `name` gets if it joins now."""
        member = self.by_name.get(name)
        if member is not None:
            return member.epoch + 1
        leaving = self.to_forget(name)
        known = 0 if leaving is None else self.by_name[leaving].epoch
        return max(self.forgotten_epoch, known) + 1

    def to_forget(self, name: str) -> str | None:
        """The name to forget so that there is room for `name`: the oldest of those that are not active."""
        if name in self.by_name or len(self.by_name) < REMEMBERED:
            return None
        return next((member.name for member in self if not member.active), None)

    def join(self, name: str, epoch: int) -> Member:
        """Gives `name` an epoch; whoever had the name before is fenced."""
        forgotten = self.to_forget(name)
        if forgotten is not None:
            self.forgotten_epoch = max(self.forgotten_epoch, self.by_name.pop(forgotten).epoch)
        member = self.by_name.setdefault(name, Member(name))
        if member.sequence:
            # Otherwise it has pushed nothing since it joined last, perhaps in a call whose answer was lost, and still
            # has to learn how far the epoch before that one came.
            member.previous_epoch, member.previous_sequence = member.epoch, member.sequence
        member.epoch, member.active, member.fenced_by = epoch, True, ""
        member.sequence, member.reply = 0, None
        return member

    def mark(self, name: str, epoch: int, sequence: int, reply: PushResult) -> None:
        """Notes that a push has been applied, with the reply that a repeat of it gets."""
        member = self.by_name.get(name)
        if member is None:  # it left while its push was in a step, and has been forgotten since
            return
        member.pushes += 1
        member.staleness = reply.staleness
        if member.epoch == epoch:
            member.sequence, member.reply = sequence, reply

    def end(self, name: str, epoch: int, why: str) -> None:
        """Ends an epoch of a worker that has left or expired."""
        member = self.by_name.get(name)
        if member is not None and member.epoch == epoch:
            member.active, member.fenced_by = False, why
