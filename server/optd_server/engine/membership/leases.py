"""The leases of a job's workers: who counts as alive, until when. Measured by a monotonic clock, and not kept."""

from dataclasses import dataclass

from optd_server.engine.membership.members import Member, Members
from optd_wire.errors import StaleEpoch, UnknownWorker
from optd_wire.values import WorkerInfo

LEFT = "it has left"
GRPC = "grpc"


@dataclass(slots=True)
class Lease:
    """What the server knows of a worker that is connected to it, for as long as the server runs."""

    until: float = 0.0
    """In seconds of the monotonic clock; the worker is alive until then."""
    held: bool = False
    ended_by: str = ""
    """Why it ended; empty while it is held."""
    lane: str = GRPC
    """How its numbers travel, and why no better way was taken."""
    rejections: int = 0


class Leases:
    """The leases of one job. A lease that ends here ends at once; the job's state learns it with its next event."""

    def __init__(self, job: str, members: Members, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._job = job
        self._members = members
        self._by_name: dict[str, Lease] = {}

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
        """What is known of a worker's connection."""
        lease = self._by_name.get(name)
        if lease is None:
            lease = self._by_name[name] = Lease()
        return lease

    def begin(self, name: str, now: float) -> None:
        """Gives a worker that has just joined a lease, and forgets the workers that the job has forgotten."""
        lease = self.of(name)
        lease.held, lease.ended_by, lease.lane, lease.until = True, "", GRPC, now + self.lease_seconds
        if len(self._by_name) > len(self._members.by_name):
            self._by_name = {known: each for known, each in self._by_name.items() if known in self._members.by_name}

    def check(self, name: str, epoch: int, now: float) -> Member:
        """The worker, its lease renewed; raises `UnknownWorker` or `StaleEpoch`."""
        member = self._members.by_name.get(name)
        if member is None:
            raise UnknownWorker(worker=name[:200], job=self._job)
        if member.epoch != epoch:
            why = f"its name was joined again and has epoch {member.epoch}"
            raise StaleEpoch(worker=name, job=self._job, epoch=epoch, why=why)
        lease = self.of(name)
        if not lease.held:
            raise StaleEpoch(worker=name, job=self._job, epoch=epoch, why=lease.ended_by or member.fenced_by)
        lease.until = now + self.lease_seconds
        return member

    def end(self, name: str, why: str) -> None:
        """Ends a lease."""
        lease = self.of(name)
        lease.held, lease.ended_by = False, why

    def expired(self, now: float) -> list[str]:
        """The workers whose leases have run out and have not been ended."""
        return [name for name, lease in self._by_name.items() if lease.held and lease.until <= now]

    @property
    def expiry(self) -> str:
        """Why a lease that runs out has ended."""
        return f"its lease of {self.lease_seconds:g} s ran out"

    def seconds_left(self, name: str, now: float) -> float:
        """How long a lease still lasts; 0 if it is not held."""
        lease = self.of(name)
        return max(0.0, lease.until - now) if lease.held else 0.0

    def info(self, member: Member, now: float, *, waiting: bool) -> WorkerInfo:
        """What others may see of a worker."""
        lease = self.of(member.name)
        return WorkerInfo(
            name=member.name,
            epoch=member.epoch,
            active=lease.held,
            lease_remaining_ms=int(self.seconds_left(member.name, now) * 1000),
            sequence=member.sequence,
            pushes=member.pushes,
            rejections=lease.rejections,
            staleness=member.staleness,
            waiting=waiting,
            lane=lease.lane,
        )
