"""Memory that workers of a job share with the server: they write their gradients there, and read the weights.

A worker can spoil its own gradient and nothing else: it maps the weights from memory that only the server can write.
"""

import hmac
import secrets
from dataclasses import dataclass, field

import numpy as np

from optd_server.engine.membership.leases import GRPC, Leases
from optd_server.engine.memory import Memory, Reservation
from optd_server.engine.rounds.looks import Looks
from optd_server.engine.state import JobState
from optd_server.store.extents import Extent, in_compute_dtype
from optd_server.store.flat import FlatBuffers, computed_bytes_of
from optd_server.store.gradients import Gradient
from optd_server.store.ledger import Ledger
from optd_server.store.memory import SharedRegion, writable_by_workers
from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot
from optd_wire.errors import MemoryExceeded, SharedMemoryUnavailable
from optd_wire.values import GRADIENT, FlatRange, SharedExtent, SharedGradient, SharedSegment

TOKEN_BYTES = 32


@dataclass(eq=False, slots=True)
class Share:
    """The shared memory of one worker, from its opening to its closing."""

    worker: str
    epoch: int
    buffers: FlatBuffers
    reservation: Reservation
    ticket: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_BYTES))
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_BYTES))
    handed_over: bool = False
    confirmed: bool = False
    held: Snapshot | None = None
    in_place: bool = False
    closed: bool = False

    @property
    def descriptors(self) -> list[int]:
        """The file descriptors of the gradient's regions, one for each extent."""
        return [region.descriptor for region in self.buffers.regions if isinstance(region, SharedRegion)]


class Sharing:
    """The shares of one job. Lives on one event loop."""

    def __init__(self, state: JobState, snapshots: Snapshots, looks: Looks, leases: Leases, memory: Memory) -> None:
        self._state = state
        self._snapshots = snapshots
        self._looks = looks
        self._leases = leases
        self._memory = memory
        self._shares: dict[str, Share] = {}

    # From opening to closing

    def open(self, worker: str, epoch: int) -> Share:
        """Allocates shared memory for a worker's gradients, and closes what it had before.

        Raises `MemoryExceeded`, or `SharedMemoryUnavailable` if the system gives none.
        """
        self.close(worker)
        reservation = Reservation(f"the shared memory of worker {worker!r} of job {self._state.name!r}")
        try:
            self._memory.reserve(reservation, computed_bytes_of(self._state.groups.layouts))
        except MemoryExceeded as error:
            self.decline(worker, str(error))
            raise
        try:
            extents = in_compute_dtype(self._state.groups.extents)
            buffers = FlatBuffers(extents, writable_by_workers)
        except OSError as error:
            self._memory.release(reservation)
            raise self.unavailable(worker, error) from None
        share = Share(worker, epoch, buffers, reservation)
        region = buffers.regions[0]
        region.array(np.dtype(np.uint8), 0, TOKEN_BYTES)[:] = np.frombuffer(share.token, np.uint8)
        self._shares[worker] = share
        return share

    def extents(self) -> tuple[SharedExtent, ...]:
        """Describes the layout of the regions that hold the weights."""
        return tuple(map(_described, self._state.groups.extents))

    def gradient_extents(self) -> tuple[SharedExtent, ...]:
        """Describes the layout of the regions that hold gradients."""
        return tuple(map(_described, in_compute_dtype(self._state.groups.extents)))

    def confirm(self, worker: str, token: bytes) -> None:
        """Confirms that the worker sees the same memory: it must return the token that the server wrote there.

        Raises `SharedMemoryUnavailable` if the token differs.
        """
        share = self._shares.get(worker)
        if share is None or not hmac.compare_digest(token, share.token):
            self.decline(worker, "its token is not the one that was written there")
            raise SharedMemoryUnavailable(why="the token is not the one that was written there")
        share.buffers.regions[0].array(np.dtype(np.uint8), 0, TOKEN_BYTES)[:] = 0
        share.confirmed = True
        self._leases.of(worker).lane = "shm"

    def decline(self, worker: str, why: str) -> None:
        """Records why a worker does not use shared memory."""
        self.close(worker)
        self._leases.of(worker).lane = f"{GRPC} ({why[:200]})"

    def unavailable(self, worker: str, problem: OSError) -> SharedMemoryUnavailable:
        """Records that the system gives no shared memory, and returns that as an error."""
        why = problem.strerror or str(problem)
        self.decline(worker, why)
        return SharedMemoryUnavailable(why=why)

    def close(self, worker: str) -> None:
        """Closes a worker's share: releases its memory, and its hold on weights that it reads in place."""
        share = self._shares.pop(worker, None)
        if share is not None:
            share.closed = True
            self._looks.forget(worker)
            self._release(share)
            share.buffers.release()
            self._memory.release(share.reservation)
            if share.confirmed:
                self._leases.of(worker).lane = GRPC

    def close_all(self) -> None:
        """Closes all shares."""
        for worker in tuple(self._shares):
            self.close(worker)

    def with_ticket(self, ticket: bytes) -> Share | None:
        """Returns the share that was issued this ticket. A ticket works once."""
        for share in self._shares.values():
            if hmac.compare_digest(share.ticket, ticket) and not share.handed_over:
                share.handed_over = True
                return share
        return None

    def region(self, number: int) -> SharedRegion | None:
        """Returns the region of the job's weights with this number."""
        return next((region for region in self._snapshots.shared_regions() if region.number == number), None)

    # Gradients and weights

    def has(self, worker: str) -> bool:
        """Whether the worker has confirmed shared memory open."""
        share = self._shares.get(worker)
        return share is not None and share.confirmed

    def gradient(self, worker: str, epoch: int, shared: SharedGradient) -> Gradient:
        """Returns the gradient that a worker has written; raises `SharedMemoryUnavailable`, or a problem of a range."""
        share = self._shares.get(worker)
        if share is None or not share.confirmed or share.epoch != epoch:
            why = f"worker {worker!r} has none open"
            raise SharedMemoryUnavailable(why=why)
        extents = share.buffers.extents
        if shared.whole:
            return Gradient(
                share.buffers.slabs, [[np.ones(len(slab.sizes), np.bool_) for slab in e.slabs] for e in extents]
            )
        ledger = Ledger(extents, GRADIENT, self._state.groups.names)
        for part in shared.ranges:
            ledger.claim(part.group, part.offset, part.count, None)
        return Gradient(share.buffers.slabs, ledger.presence())

    def deliver(self, worker: str, epoch: int, *, in_place: bool) -> tuple[Snapshot, bool] | None:
        """Holds the current weights for a worker and releases those that it held; tells whether it may read in place.

        Returns None if the worker shares no memory in this epoch, or if the weights do not lie in shared memory. A late
        call of an old epoch must not end the hold of the new one.
        """
        share = self._shares.get(worker)
        if share is None or not share.confirmed or share.epoch != epoch:
            return None
        self._release(share)
        snapshot = self._snapshots.hold()
        if not snapshot.weights.shared:
            self._snapshots.release(snapshot)
            return None
        share.held = snapshot
        share.in_place = in_place and self._snapshots.settle(snapshot)
        return snapshot, share.in_place

    def release(self, worker: str) -> None:
        """Releases the weights that a worker holds."""
        share = self._shares.get(worker)
        if share is not None:
            self._release(share)

    def _release(self, share: Share) -> None:
        held, share.held = share.held, None
        if held is not None:
            if share.in_place:
                self._snapshots.unsettle(held)
            self._snapshots.release(held)


def _described(extent: Extent) -> SharedExtent:
    segments = [
        SharedSegment(
            FlatRange(extent.first_group + index, segment.offset, segment.count),
            extent.slabs[place.slab].byte_offset + place.start * extent.slabs[place.slab].element_dtype.itemsize,
        )
        for index, (layout, places) in enumerate(zip(extent.layouts, extent.places, strict=True))
        for segment, place in zip(layout.segments, places, strict=True)
    ]
    return SharedExtent(max(extent.bytes, SharedRegion.LEAST), tuple(segments))
