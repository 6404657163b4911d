"""Parameters, and ranges of the flat buffers that hold them."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class FlatRange:
    """Elements `offset` to `offset + count` of a group's flat buffer; `group` is its index."""

    group: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter as the job's creator declares it; `dtype` is a key of `optd_wire.dtypes.DTYPES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements; 1 for a scalar."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter as the server holds it; `offset` is its first element in the group's flat buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def size(self) -> int:
        """The number of elements; 1 for a scalar."""
        return prod(self.shape)
