"""The `shm` lane: numbers in memory that worker and server share, and small messages by gRPC.

The server makes the memory and passes it through a Unix socket. The worker writes gradients to their regions. The
regions of weights it maps privately, so that nothing it writes there is seen by others.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from optd.transport.lane import Lane, Member, PlacedGradients, PlacedWeights, SharedBuffers, refuse_weights
from optd.transport.numbers import RowSource, Sink, Source, StepSink, may_leave_out
from optd.transport.requests import Delivery, PullRequest
from optd.transport.server_calls import ServerCalls
from optd.transport.shared_region import Region
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.errors import SharedMemoryUnavailable
from optd_wire.frames import Frame, GatheredFrame
from optd_wire.layout import GroupLayout
from optd_wire.row_frames import RowFrame
from optd_wire.values import FlatRange, PullResult, PushHeader, PushResult, SharedGradient, SharedWeights

Array = npt.NDArray[Any]
TOKEN_BYTES = 32
CONNECT_SECONDS = 5.0
MAX_DESCRIPTORS = 250
# The server alternates between a few sets of regions; a change of groups brings new ones.
MOST_SETS = 8


class SharedMemoryLane(Lane, SharedBuffers):
    """Numbers in shared memory. The constructor raises `SharedMemoryUnavailable` if no memory can be shared."""

    name = "shm"

    def __init__(self, calls: ServerCalls, member: Member, layouts: list[GroupLayout], timeout: float) -> None:
        self._calls = calls
        self._member = member
        self._layouts = layouts
        self._memory = calls.open_shared_memory(*member, timeout)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._open(timeout)
        except BaseException:
            self._socket.close()
            raise
        self._weights: dict[int, Region] = {}
        self._frames: dict[tuple[int, ...], PlacedWeights] = {}
        self._lent: tuple[int, ...] = ()
        """The regions of weights that are in place now; the caller may have written to them, or to earlier ones."""
        self._ever_lent = False
        self.writable = False
        """See `SharedBuffers`."""

    # The memory

    @property
    def buffers(self) -> SharedBuffers:
        """The memory that both sides have."""
        return self

    def _open(self, timeout: float) -> None:
        try:
            _connect(self._socket, self._memory.path)
            self._gradient = self._receive_gradient()
            self.gradients = [self._segments(self._gradient, group) for group in range(len(self._layouts))]
            """See `SharedBuffers`."""
        except SharedMemoryUnavailable as unavailable:
            self._calls.confirm_shared_memory(*self._member, timeout, problem=unavailable.values["why"])
            raise
        token = self._gradient[0].array(np.dtype(np.uint8), 0, TOKEN_BYTES).tobytes()
        self._calls.confirm_shared_memory(*self._member, timeout, token=token)

    def _receive_gradient(self) -> list[Region]:
        descriptors = self._descriptors(self._memory.ticket, MAX_DESCRIPTORS)
        sizes = [extent.bytes for extent in self._memory.gradient_extents]
        try:
            if len(descriptors) != len(sizes):
                why = f"the server handed over {len(descriptors)} regions, not {len(sizes)}"
                raise SharedMemoryUnavailable(why=why)
            regions = [_mapped(descriptors.pop(0), size, shared=True) for size in sizes]
            for region in regions:
                region.touch()
            return regions
        finally:
            for descriptor in descriptors:  # after one that could not be mapped, or if their number is wrong
                os.close(descriptor)

    def _descriptors(self, asked: bytes, most: int) -> list[int]:
        try:
            self._socket.sendall(asked)
            return socket.recv_fds(self._socket, 64, most)[1]
        except OSError as error:
            why = f"the server did not hand it over: {(error.strerror or str(error)).lower()}"
            raise SharedMemoryUnavailable(why=why) from None

    def _region(self, number: int, size: int) -> Region:
        """A region of weights, which is mapped at its first use."""
        if number not in self._weights:
            descriptors = self._descriptors(str(number).encode(), 1)
            if not descriptors:
                why = f"the server has no region {number}"
                raise SharedMemoryUnavailable(why=why)
            self._weights[number] = _mapped(descriptors[0], size, shared=False)
        return self._weights[number]

    def _segments(self, regions: list[Region], group: int) -> list[Array]:
        found = []
        for segment in self._layouts[group].segments:
            place = self._place_of_gradient(FlatRange(group, segment.offset, segment.count))
            found.append(regions[place[0]].array(DTYPES[COMPUTED[segment.dtype]], place[1], segment.count))
        return found

    def _place_of_gradient(self, wanted: FlatRange) -> tuple[int, int]:
        for number, extent in enumerate(self._memory.gradient_extents):
            for segment in extent.segments:
                if segment.range == wanted:
                    return number, segment.byte_offset
        why = f"the server's memory has no place for group {wanted.group}"
        raise SharedMemoryUnavailable(why=why)

    def holds(self, array: Array) -> bool:
        """Whether an array lies where the server reads gradients."""
        address: int = array.__array_interface__["data"][0]
        return any(region.address <= address < region.address + region.size for region in self._gradient)

    def keep(self) -> None:
        """Makes weights in place keep their values, whatever the server writes there from now on."""
        lent, self._lent = self._lent, ()
        for number in lent:
            self._weights[number].keep()

    def close(self) -> None:
        """Gives the memory up. Arrays in it that are still in use keep their values."""
        self.keep()
        self._socket.close()
        self._weights.clear()

    # Pushes and pulls

    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; blocks until they are part of a step."""
        header, source = self._placed(header, gradients)
        return self._calls.step(header, source, Delivery(none=True), refuse_weights, timeout)[0]

    def step(
        self,
        header: PushHeader,
        gradients: Source,
        weights: StepSink,
        timeout: float,
        *,
        in_place: Sink | None,
        encoding: str,
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls; nothing is encoded."""
        header, source = self._placed(header, gradients)
        if may_leave_out(gradients):
            delivery = Delivery(changed=True)
        else:
            delivery = Delivery(shared=True, in_place=in_place is not None)
        pushed, pulled = self._calls.step(header, source, delivery, weights, timeout)
        self._read(pulled.shared, weights, in_place)
        return pushed, pulled

    def pull(
        self, request: PullRequest, weights: Sink, timeout: float, *, in_place: Sink | None, encoding: str
    ) -> PullResult:
        """Reads the current weights; nothing is encoded."""
        mine = (request.job, request.worker, request.epoch) == self._member
        delivery = Delivery(encoding=encoding, shared=mine, in_place=in_place is not None)
        request = replace(request, delivery=delivery)
        pulled = self._calls.pull(request, weights, timeout)
        self._read(pulled.shared, weights, in_place)
        return pulled

    def _placed(self, header: PushHeader, gradients: Source) -> tuple[PushHeader, Source]:
        """Puts gradients where the server reads them; a source with rows travels in messages instead."""
        if isinstance(gradients, RowSource):
            return header, gradients
        return replace(header, shared=self._write(gradients)), _nothing

    def _write(self, gradients: Source) -> SharedGradient:
        """Writes gradients to the shared memory, unless they lie there already; returns their ranges."""
        if isinstance(gradients, PlacedGradients) and gradients.buffers is self:
            return SharedGradient(gradients.ranges is None, gradients.ranges or ())
        ranges: list[FlatRange] = []
        for batch in gradients():
            for frame in batch:
                assert not isinstance(frame, RowFrame), "a source of rows says that it is one"
                target = self._target(frame.group, frame.offset, frame.count)
                start = 0
                for piece in frame.pieces():
                    values = np.frombuffer(piece, frame.encoding.dtype)
                    target[start : start + values.size] = values
                    start += values.size
                ranges.append(FlatRange(frame.group, frame.offset, frame.count))
        return SharedGradient(False, tuple(ranges))

    def _target(self, group: int, offset: int, count: int) -> Array:
        for segment, array in zip(self._layouts[group].segments, self.gradients[group], strict=True):
            if segment.offset <= offset and offset + count <= segment.offset + segment.count:
                return array[offset - segment.offset : offset - segment.offset + count]
        raise ValueError(f"group {group} has no elements [{offset}, {offset + count})")

    def _read(self, shared: SharedWeights | None, weights: Sink | StepSink, in_place: Sink | None) -> None:
        if shared is None:
            return
        mapped = self._mapped(shared.regions)
        if self._ever_lent and self.writable:
            for number in shared.regions:
                if number in self._weights:
                    self._weights[number].refresh()
        if shared.in_place and in_place is not None:
            self._lent, self._ever_lent = shared.regions, True
            in_place(mapped)
        else:
            weights(mapped)
            self._lent = ()
        if not shared.in_place:
            self._calls.release(*self._member)

    def _mapped(self, regions: tuple[int, ...]) -> PlacedWeights:
        if regions not in self._frames:
            if len(self._frames) == MOST_SETS:
                self._frames.clear()
            self._frames[regions] = PlacedWeights(self._frames_in(regions))
        return self._frames[regions]

    def _frames_in(self, regions: tuple[int, ...]) -> Iterator[Frame]:
        for number, extent in zip(regions, self._memory.extents, strict=False):
            region = self._region(number, extent.bytes)
            for segment in extent.segments:
                part = segment.range
                dtype = next(s.dtype for s in self._layouts[part.group].segments if s.offset == part.offset)
                yield Frame.of(part.group, part.offset, region.array(DTYPES[dtype], segment.byte_offset, part.count))


def _connect(connection: socket.socket, path: str) -> None:
    connection.settimeout(CONNECT_SECONDS)
    try:
        connection.connect(path)
    except OSError as error:
        why = f"cannot connect to {path}: {(error.strerror or str(error)).lower()}"
        raise SharedMemoryUnavailable(why=why) from None


def _mapped(descriptor: int, size: int, *, shared: bool) -> Region:
    try:
        return Region(descriptor, size, shared=shared)
    except OSError as error:
        why = f"this process cannot map {size} bytes: {(error.strerror or str(error)).lower()}"
        raise SharedMemoryUnavailable(why=why) from None


def _nothing() -> Iterator[list[GatheredFrame]]:
    return iter(())
