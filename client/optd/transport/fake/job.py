"""A job of the fake server: its weights, its workers with their epochs and marks, and its steps."""

from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from optd_wire.dtypes import DTYPES
from optd_wire.errors import (
    FutureVersion,
    InvalidRequest,
    JobMismatch,
    JobReplaced,
    LeaseExpired,
    OptdError,
    RolledBack,
    SequenceGap,
    StaleEpoch,
    UnknownWorker,
)
from optd_wire.frames import Frame, GatheredFrame, Outgoing
from optd_wire.layout import GroupLayout, lay_out
from optd_wire.values import (
    EXPIRED,
    LEFT,
    REPLACED,
    ROLLED_BACK,
    Async,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    JobInfo,
    JobOptions,
    JobSpec,
    JobVersion,
    Membership,
    Options,
    ParameterInfo,
    PushHeader,
    PushResult,
    WorkerInfo,
)

DEFAULT_LR = 1e-3
MAX_MESSAGE_BYTES = 1 << 22


@dataclass(slots=True)
class FakeWorker:
    """A worker that has joined: its epoch, its lease, and the mark of its last push."""

    epoch: int = 0
    sequence: int = 0
    reply: PushResult | None = None
    previous_epoch: int = 0
    previous_sequence: int = 0
    pushes: int = 0
    speed: float = 0.0
    session_id: str = ""
    lease_until: float = 0.0
    fenced_by: str = ""
    """Why the epoch counts no longer; empty while it does."""
    is_rolled_back: bool = False
    """Whether it is fenced because the job went back to an older version."""
    ended: str = ""
    """How its part last ended, as `WorkerInfo` says it."""
    host: str = ""
    pid: int = 0


@dataclass(slots=True)
class FakeGroup:
    """A group: what it was declared as, and its weights, one array for each segment of its flat buffer."""

    spec: GroupSpec
    layout: GroupLayout
    segments: list[npt.NDArray[np.floating]]


class FakeJob:
    """See the module. `clock` counts seconds."""

    def __init__(self, spec: JobSpec, job_id: str, lease_seconds: float, clock: Callable[[], float]) -> None:
        self.spec = spec
        self.id = job_id
        self.version = 0
        self.workers: dict[str, FakeWorker] = {}
        self.groups: list[FakeGroup] = []
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._last_epoch = 0

    def saved(self) -> "FakeJob":
        """A copy, to which `go_back` returns."""
        made = copy(self)
        made.workers = {name: replace(worker) for name, worker in self.workers.items()}
        made.groups = [replace(group, segments=[each.copy() for each in group.segments]) for group in self.groups]
        return made

    def go_back(self, saved: "FakeJob") -> None:
        """Becomes what it was, as after a restart that lost steps: that fences all workers."""
        self._last_epoch = max([self._last_epoch, *(worker.epoch for worker in self.workers.values())])
        again = saved.saved()
        self.version, self.groups, self.workers = again.version, again.groups, again.workers
        for worker in self.workers.values():
            worker.fenced_by, worker.is_rolled_back = f"the server went back to version {self.version}", True
            worker.ended = ROLLED_BACK

    def add(self, spec: GroupSpec) -> None:
        """Adds a group with weights of zero."""
        layout = lay_out(spec.parameters)
        self.groups.append(
            FakeGroup(spec, layout, [np.zeros(segment.count, DTYPES[segment.dtype]) for segment in layout.segments])
        )

    def write(self, frames: Iterable[Outgoing]) -> None:
        """Replaces the weights in the ranges of frames."""
        for target, numbers, _ in self._ranges(frames):
            target[:] = numbers

    def _ranges(
        self, frames: Iterable[Outgoing]
    ) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], FakeGroup]]:
        """The weights that each frame is for, its numbers, and its group."""
        for frame in frames:
            if not isinstance(frame, Frame | GatheredFrame):
                raise InvalidRequest(problem="the fake server takes no gradients of rows")
            group = self.groups[frame.group]
            for segment, weights in zip(group.layout.segments, group.segments, strict=True):
                start = frame.offset - segment.offset
                if start >= 0 and start + frame.count <= segment.count and frame.count:
                    payload = b"".join(bytes(piece) for piece in frame.pieces())
                    whole = Frame(frame.group, frame.offset, frame.count, frame.encoding, payload)
                    yield weights[start : start + frame.count], whole.decoded(weights.dtype), group

    def frames(self, parameters: Collection[str] = ()) -> list[Frame]:
        """Copies of all weights, or of those of some parameters."""
        whole = [
            Frame.of(index, segment.offset, weights.copy())
            for index, group in enumerate(self.groups)
            for segment, weights in zip(group.layout.segments, group.segments, strict=True)
        ]
        return [self._part(frame, place) for frame in whole for place in self._places(frame, parameters)] or whole

    def _places(self, frame: Frame, parameters: Collection[str]) -> list[int]:
        """The places of parameters that lie in a frame."""
        group = self.groups[frame.group]
        segment = next(each for each in group.layout.segments if each.offset == frame.offset)
        return [place for place in segment.members if group.spec.parameters[place].name in parameters]

    def _part(self, frame: Frame, place: int) -> Frame:
        own = self.groups[frame.group].layout.parameters[place]
        start = own.offset - frame.offset
        return Frame.of(frame.group, own.offset, frame.values[start : start + own.size])

    def info(self) -> JobInfo:
        """The job as `GetJob` describes it."""
        return JobInfo(
            self.spec.name,
            self.spec.algorithm,
            self.spec.defaults,
            self.spec.policy or Async(),
            tuple(self.group_info(index) for index in range(len(self.groups))),
            JobVersion(self.version),
            JobOptions(self.spec.options),
            ephemeral=self.spec.ephemeral,
            id=self.id,
        )

    def group_info(self, index: int) -> GroupInfo:
        """One group as `GetJob` describes it."""
        group = self.groups[index]
        parameters = tuple(
            ParameterInfo(spec.name, spec.shape, spec.dtype, own.offset)
            for spec, own in zip(group.spec.parameters, group.layout.parameters, strict=True)
        )
        algorithm = group.spec.algorithm or self.spec.algorithm
        return GroupInfo(index, GroupOptions(group.spec.name, self._options(group), algorithm=algorithm), parameters)

    def _options(self, group: FakeGroup) -> Options:
        return {"lr": DEFAULT_LR, **self.spec.defaults, **group.spec.options}

    # Workers

    def join(
        self,
        name: str,
        spec: JobSpec | None,
        job_id: str,
        host: str = "",
        pid: int = 0,
        *,
        resumes_epoch: int = 0,
        session_id: str = "",
    ) -> Membership:
        """Gives a worker a new epoch and a lease, which fences its old epoch."""
        if job_id and job_id != self.id:
            raise JobReplaced(job=self.spec.name, worker=name)
        if spec is not None and (spec.algorithm, spec.groups) != (self.spec.algorithm, self.spec.groups):
            raise JobMismatch(job=self.spec.name, aspect="registration", theirs=self.spec.groups, ours=spec.groups)
        worker = self.workers.setdefault(name, FakeWorker())
        if 0 < resumes_epoch < worker.epoch and worker.session_id != session_id:
            raise self._joined_again(name, resumes_epoch)
        worker.session_id = session_id
        if worker.epoch and self._is_active(worker):
            worker.ended = REPLACED
        worker.host, worker.pid = host, pid
        if worker.sequence:
            worker.previous_epoch, worker.previous_sequence = worker.epoch, worker.sequence
        worker.epoch, worker.sequence, worker.reply = max(worker.epoch, self._last_epoch) + 1, 0, None
        worker.fenced_by, worker.is_rolled_back = "", False
        worker.lease_until = self._clock() + self._lease_seconds
        others = sum(self._is_active(other) for own, other in self.workers.items() if own != name)
        lease_ms = int(1000 * self._lease_seconds)
        previous = worker.previous_epoch, worker.previous_sequence
        return Membership(worker.epoch, lease_ms, self.info(), (), MAX_MESSAGE_BYTES, *previous, others)

    def worker(self, name: str, epoch: int) -> FakeWorker:
        """The worker, its lease renewed; raises `UnknownWorker` or `StaleEpoch`."""
        worker = self.workers.get(name)
        if worker is None:
            raise UnknownWorker(worker=name, job=self.spec.name)
        if worker.epoch < epoch:
            why = f"the server went back to version {self.version}, at which that epoch did not exist"
            raise RolledBack(worker=name, job=self.spec.name, epoch=epoch, why=why)
        if worker.epoch != epoch:
            raise self._joined_again(name, epoch)
        if not self._is_active(worker):
            fenced: type[OptdError] = RolledBack if worker.is_rolled_back else StaleEpoch
            if worker.fenced_by.endswith("ran out"):
                fenced = LeaseExpired
            raise fenced(worker=name, job=self.spec.name, epoch=epoch, why=worker.fenced_by)
        worker.lease_until = self._clock() + self._lease_seconds
        return worker

    def _joined_again(self, name: str, epoch: int) -> StaleEpoch:
        why = f"its name was joined again and has epoch {self.workers[name].epoch}"
        return StaleEpoch(worker=name, job=self.spec.name, epoch=epoch, why=why)

    def _is_active(self, worker: FakeWorker) -> bool:
        if not worker.fenced_by and worker.lease_until <= self._clock():
            worker.fenced_by, worker.ended = f"its lease of {self._lease_seconds:g} s ran out", EXPIRED
        return not worker.fenced_by

    def leave(self, name: str, epoch: int) -> None:
        """Ends a lease."""
        worker = self.worker(name, epoch)
        worker.fenced_by, worker.ended = "it has left", LEFT

    def worker_infos(self) -> list[WorkerInfo]:
        """The workers as `ListWorkers` lists them."""
        return [
            WorkerInfo(
                name=name,
                epoch=each.epoch,
                active=self._is_active(each),
                lease_remaining_ms=0,
                sequence=each.sequence,
                pushes=each.pushes,
                rejections=0,
                staleness=0,
                waiting=False,
                lane="grpc",
                host=each.host,
                pid=each.pid,
                ended=each.ended,
                speed=each.speed,
            )
            for name, each in sorted(self.workers.items())
        ]

    # Steps

    def push(self, header: PushHeader, frames: Iterable[Outgoing]) -> PushResult:
        """Steps with a gradient; a repeat gets the first reply. Raises `SequenceGap` and what `worker` raises."""
        worker = self.worker(header.worker, header.epoch)
        if worker.reply is not None and header.sequence == worker.sequence:
            return replace(worker.reply, repeat=True)
        if header.sequence != worker.sequence + 1:
            last = worker.sequence
            raise SequenceGap(worker=header.worker, sequence=header.sequence, expected=last + 1, last=last)
        if header.base_version > self.version:
            raise FutureVersion(
                worker=header.worker, base_version=header.base_version, job=self.spec.name, version=self.version
            )
        # All of it is read before any of it counts.
        for weights, gradient, group in list(self._ranges(frames)):
            np.subtract(weights, np.asarray(self._options(group)["lr"], weights.dtype) * gradient, out=weights)
        staleness = self.version - header.base_version
        self.version += 1
        worker.pushes += 1
        worker.speed = header.speed or worker.speed
        worker.sequence = header.sequence
        worker.reply = PushResult(JobVersion(self.version), self.version, staleness, False)
        return worker.reply
