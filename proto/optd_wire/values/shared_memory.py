"""Memory that a worker shares with the server, and the places of weights and gradients in it."""

from dataclasses import dataclass

from optd_wire.values.parameters import FlatRange


@dataclass(frozen=True, slots=True)
class SharedSegment:
    """The place of a range of elements in a region of shared memory."""

    range: FlatRange
    byte_offset: int


@dataclass(frozen=True, slots=True)
class SharedExtent:
    """The elements that lie in one region of shared memory."""

    bytes: int
    segments: tuple[SharedSegment, ...]


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory that a worker shares with the server: the Unix socket that hands it over, and its layout."""

    path: str
    ticket: bytes
    extents: tuple[SharedExtent, ...]
    gradient_extents: tuple[SharedExtent, ...]


@dataclass(frozen=True, slots=True)
class SharedGradient:
    """A gradient in memory that the worker shares: of all parameters (`whole`), or of some ranges."""

    whole: bool
    ranges: tuple[FlatRange, ...] = ()


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """The regions of shared memory that hold weights; `in_place` if they stay there until the worker's next call."""

    regions: tuple[int, ...]
    in_place: bool
