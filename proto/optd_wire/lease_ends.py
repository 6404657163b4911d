"""How a worker's part in a job ended, and the numbers of that in the contract."""

from optd_wire.v1.worker_service_pb2 import LeaseEnd
from optd_wire.values import EXPIRED, LEFT, REPLACED, ROLLED_BACK

_NUMBER_OF = {
    "": LeaseEnd.LEASE_END_UNSPECIFIED,
    LEFT: LeaseEnd.LEASE_END_LEFT,
    EXPIRED: LeaseEnd.LEASE_END_EXPIRED,
    REPLACED: LeaseEnd.LEASE_END_REPLACED,
    ROLLED_BACK: LeaseEnd.LEASE_END_ROLLED_BACK,
}
_OF_NUMBER = {int(number): end for end, number in _NUMBER_OF.items()}

if _OF_NUMBER.keys() != set(LeaseEnd.values()):
    raise ImportError("the ends of leases and the contract's LeaseEnd differ")


def lease_end_to_enum(end: str) -> int:
    """The contract's number of an end; 0 (unspecified) if it is empty or the contract does not have it."""
    return _NUMBER_OF.get(end, 0)


def lease_end_from_enum(number: int) -> str:
    """The name of an end; `"end 17"` for a number that only a newer server knows."""
    return _OF_NUMBER.get(number, f"end {number}")
