"""How much a stale gradient counts, for `optd.Async(staleness=...)`."""

from optd_wire.values import Exponential

__all__ = ["Exponential"]
