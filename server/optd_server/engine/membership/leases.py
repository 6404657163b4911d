"""The leases of a job's workers: which workers count as alive, and until when.

Leases are measured by a monotonic clock and do not survive a restart.
"""

import math
from dataclasses import dataclass, field

from optd_server.engine.membership.activity import UNKNOWN, Activity, end_of
from optd_server.engine.membership.members import RAN_OUT, WENT_BACK, Member, Members
from optd_wire.errors import LeaseExpired, OptdError, RolledBack, StaleEpoch, UnknownWorker
from optd_wire.values import PushResult, WorkerInfo

GRPC = "grpc"


@dataclass(slots=True)
class Lease:
    """What the server knows about a worker's connection while the server runs."""

    until: float = 0.0
    """The deadline, in seconds of the monotonic clock."""
    held: bool = False
    ended_by: str = ""
    """Why it ended; empty while it is held."""
    lane: str = GRPC
    """The worker's lane, and why it is not a faster one."""
    speed: float = 0.0
    """How many steps of its own the worker computes in a second, as its pushes have told; 0: unknown."""
    dropped_rounds: int = 0
    """How many rounds have closed without a push of it."""
    activity: Activity = field(default_factory=Activity)


class Leases:
    """The leases of one job. A lease ends here at once; the job's state follows with an event."""

    def __init__(self, job: str, members: Members, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._job = job
        self._members = members
        self._by_name: dict[str, Lease] = {}
        self._added_up: set[str] = set()
        """The workers with a push that is added up for a step to come."""

    @property
    def active(self) -> int:
        """How many workers hold a lease."""
        return sum(lease.held for lease in self._by_name.values())

    def holders(self) -> list[str]:
        """The workers that hold a lease."""
        return [name for name, lease in self._by_name.items() if lease.held]

    def holds(self, name: str) -> bool:
        """Whether a worker holds a lease."""
        lease = self._by_name.get(name)
        return lease is not None and lease.held

    def of(self, name: str) -> Lease:
        """Return the lease of a worker, which may never have been held."""
        lease = self._by_name.get(name)
        if lease is None:
            lease = self._by_name[name] = Lease()
        return lease

    def begin(self, name: str, now: float) -> None:
        """Grant a lease to a worker that has just joined, and forget the workers that the job has forgotten."""
        lease = self.of(name)
        lease.held, lease.ended_by, lease.lane, lease.until = True, "", GRPC, now + self.lease_seconds
        lease.speed = 0.0
        if len(self._by_name) > len(self._members.by_name):
            self._by_name = {known: each for known, each in self._by_name.items() if known in self._members.by_name}

    def check(self, name: str, epoch: int, now: float) -> Member:
        """Renew a worker's lease and return the worker.

        Raise `UnknownWorker`, `StaleEpoch`, `RolledBack`, or `LeaseExpired` if nobody has taken the name since.
        """
        member = self._members.by_name.get(name)
        if member is None:
            raise UnknownWorker(worker=name[:200], job=self._job)
        if member.epoch < epoch:
            # It was assigned in a version that is lost.
            why = f"the server went back to a version in which its epoch was {member.epoch}"
            raise RolledBack(worker=name, job=self._job, epoch=epoch, why=why)
        if member.epoch != epoch:
            process = self.of(name).activity.process
            by = "" if process == UNKNOWN else f" by host {process.host}, pid {process.pid},"
            why = f"its name was joined again{by} and has epoch {member.epoch}"
            raise StaleEpoch(worker=name, job=self._job, epoch=epoch, why=why)
        lease = self.of(name)
        if not lease.held:
            why = lease.ended_by or member.fenced_by
            raise _fenced_by(why)(worker=name, job=self._job, epoch=epoch, why=why)
        lease.until = now + self.lease_seconds
        return member

    def note_speed(self, name: str, speed: float) -> None:
        """Note how fast a worker that holds a lease computes; ignore what is no speed."""
        if self.holds(name) and 0 < speed < math.inf:
            self.of(name).speed = speed

    def renew(self, name: str, epoch: int, now: float) -> None:
        """Renew a lease because a message of the worker has arrived; a lease that has ended stays so."""
        lease, member = self._by_name.get(name), self._members.by_name.get(name)
        if lease is not None and lease.held and member is not None and member.epoch == epoch:
            lease.until = now + self.lease_seconds

    def end(self, name: str, why: str) -> None:
        """End a lease."""
        lease = self.of(name)
        lease.held, lease.ended_by = False, why

    def note_applied(self, name: str, reply: PushResult, wall: float) -> None:
        """Note for people that a push was applied: in a step, or added up for one, or skipped; `wall` is the time."""
        self.of(name).activity.staleness.append(reply.staleness)
        if reply.accumulated:
            self._added_up.add(name)
        elif not reply.skipped and not reply.nothing_pending:
            self._added_up.add(name)
            self.note_step(wall)

    def note_step(self, wall: float) -> None:
        """Note for people that the pushes that were added up have become a step."""
        for name in self._added_up:
            self.of(name).activity.last_step = wall
        self._added_up.clear()

    def expired(self, now: float) -> list[str]:
        """Return the workers whose leases have run out but have not been ended yet."""
        return [name for name, lease in self._by_name.items() if lease.held and lease.until <= now]

    def ended(self) -> list[tuple[str, float]]:
        """Return the workers whose leases have ended, each with the wall time of that."""
        return [(name, lease.activity.ended_at) for name, lease in self._by_name.items() if not lease.held]

    @property
    def expiry(self) -> str:
        """The reason recorded for a lease that has run out."""
        return f"{RAN_OUT}{self.lease_seconds:g} s ran out"

    def seconds_left(self, name: str, now: float) -> float:
        """Return how long a lease still lasts; 0 if it is not held."""
        lease = self.of(name)
        return max(0.0, lease.until - now) if lease.held else 0.0

    def info(self, member: Member, now: float, waiting_since: float | None) -> WorkerInfo:
        """Describe a worker for other clients. If its push waits, `waiting_since` is the wall time at which it came."""
        lease = self.of(member.name)
        activity = lease.activity
        return WorkerInfo(
            name=member.name,
            epoch=member.epoch,
            active=lease.held,
            lease_remaining_ms=int(self.seconds_left(member.name, now) * 1000),
            sequence=member.sequence,
            pushes=member.pushes,
            rejections=activity.rejections.total(),
            staleness=member.staleness,
            waiting=waiting_since is not None,
            lane=lease.lane,
            host=activity.process.host,
            pid=activity.process.pid,
            joined_unix_ms=_ms(activity.joined),
            last_push_unix_ms=_ms(activity.last_push),
            last_step_unix_ms=_ms(activity.last_step),
            ended=activity.ended or end_of(member.fenced_by),
            ended_unix_ms=_ms(activity.ended_at),
            recent_staleness=activity.staleness_summary(),
            rejections_by_reason=dict(activity.rejections),
            dropped_rounds=lease.dropped_rounds,
            waiting_since_unix_ms=_ms(waiting_since or 0.0),
            speed=lease.speed,
        )


def _fenced_by(why: str) -> type[OptdError]:
    """Return the error of a worker whose epoch is the last one of its name, and has ended."""
    if why.startswith(WENT_BACK):
        return RolledBack
    return LeaseExpired if why.startswith(RAN_OUT) else StaleEpoch


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
