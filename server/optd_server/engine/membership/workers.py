"""Who takes part in a job: epochs, leases, and the mark of each worker's last applied push."""

from collections.abc import Iterator
from dataclasses import dataclass

from optd_wire.errors import StaleEpoch, UnknownWorker
from optd_wire.values import GroupOptions, JobVersion, PushResult, WorkerInfo

Written = tuple[tuple[GroupOptions, ...], JobVersion]
"""The options of all groups after a write of state, and where the job stood then."""
# A worker whose name is left to chance has a new one each time it starts.
REMEMBERED = 1024


@dataclass(slots=True)
class Worker:
    """One worker. `sequence` and `reply` are the mark of its last applied push in this epoch."""

    name: str
    epoch: int = 0
    lease_until: float = 0.0
    active: bool = False
    fenced_by: str = ""
    sequence: int = 0
    reply: PushResult | None = None
    written: tuple[str, Written] | None = None
    """The id of its last write of state, and the answer to it."""
    pushes: int = 0
    rejections: int = 0
    staleness: int = 0
    lane: str = "grpc"
    previous_epoch: int = 0
    previous_sequence: int = 0

    def answer_to(self, write_id: str) -> Written | None:
        """The answer to its last write of state, if that has this id."""
        return self.written[1] if write_id and self.written is not None and self.written[0] == write_id else None


class Workers:
    """The workers of one job. Names that have left are remembered, as many as `REMEMBERED`; epochs never repeat."""

    def __init__(self, job: str, lease_seconds: float, first_epoch: int = 0) -> None:
        self.lease_seconds = lease_seconds
        self._job = job
        self._by_name: dict[str, Worker] = {}
        self._forgotten_epoch = first_epoch

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._by_name.values())

    @property
    def active(self) -> int:
        """How many hold a lease."""
        return sum(worker.active for worker in self)

    @property
    def last_epoch(self) -> int:
        """The highest epoch that was ever given."""
        return max([self._forgotten_epoch, *(worker.epoch for worker in self)])

    def find(self, name: str) -> Worker | None:
        """The worker, if it has ever joined."""
        return self._by_name.get(name)

    def join(self, name: str, now: float) -> Worker:
        """Gives `name` a new epoch and a lease; whoever had the name before is fenced."""
        if name not in self._by_name:
            self._forget_one()
            self._by_name[name] = Worker(name, epoch=self._forgotten_epoch)
        worker = self._by_name[name]
        if worker.sequence:
            # Else it has joined since, maybe in a call whose answer was lost, and asks what became of pushes before.
            worker.previous_epoch, worker.previous_sequence = worker.epoch, worker.sequence
        worker.epoch += 1
        worker.active = True
        worker.fenced_by = ""
        worker.sequence = 0
        worker.reply = None
        worker.lane = "grpc"
        worker.lease_until = now + self.lease_seconds
        return worker

    def _forget_one(self) -> None:
        """Makes room for a new name: the one that came first, of those that hold no lease, is forgotten.

        New names then begin behind its epoch, so that no epoch of any name is ever given twice.
        """
        if len(self._by_name) < REMEMBERED:
            return
        gone = next((worker for worker in self if not worker.active), None)
        if gone is not None:
            self._forgotten_epoch = max(self._forgotten_epoch, gone.epoch)
            del self._by_name[gone.name]

    def check(self, name: str, epoch: int, now: float) -> Worker:
        """The worker, its lease renewed; raises `UnknownWorker` or `StaleEpoch`."""
        worker = self._by_name.get(name)
        if worker is None:
            raise UnknownWorker(worker=name[:200], job=self._job)
        if worker.epoch != epoch:
            why = f"its name was joined again and has epoch {worker.epoch}"
            raise StaleEpoch(worker=name, job=self._job, epoch=epoch, why=why)
        if not worker.active:
            raise StaleEpoch(worker=name, job=self._job, epoch=epoch, why=worker.fenced_by)
        worker.lease_until = now + self.lease_seconds
        return worker

    def mark(self, name: str, epoch: int, sequence: int, reply: PushResult) -> None:
        """Notes that a push has been applied, with the reply that a repeat of it gets."""
        worker = self._by_name.get(name)
        if worker is None:  # it has left while its push was in a step, and has been forgotten since
            return
        worker.pushes += 1
        worker.staleness = reply.staleness
        if worker.epoch == epoch:
            worker.sequence = sequence
            worker.reply = reply

    def leave(self, worker: Worker) -> None:
        """Ends a lease on the worker's own word."""
        self._end(worker, "it has left")

    def expire(self, now: float) -> list[Worker]:
        """Ends the leases that have run out; returns their workers."""
        late = [worker for worker in self if worker.active and worker.lease_until <= now]
        for worker in late:
            self._end(worker, f"its lease of {self.lease_seconds:g} s ran out")
        return late

    def _end(self, worker: Worker, why: str) -> None:
        worker.active = False
        worker.fenced_by = why

    def info(self, worker: Worker, now: float, *, waiting: bool) -> WorkerInfo:
        """What others may see of a worker."""
        remaining = max(0.0, worker.lease_until - now) if worker.active else 0.0
        return WorkerInfo(
            name=worker.name,
            epoch=worker.epoch,
            active=worker.active,
            lease_remaining_ms=int(remaining * 1000),
            sequence=worker.sequence,
            pushes=worker.pushes,
            rejections=worker.rejections,
            staleness=worker.staleness,
            waiting=waiting,
            lane=worker.lane,
        )
