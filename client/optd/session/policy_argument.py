"""The policy that a caller gives."""

from typing import Any, get_args

from optd_wire.errors import InvalidRequest
from optd_wire.values import Async, Bounded, Exponential, OnDeath, Policy, Sync


def checked_policy(policy: object) -> Policy:
    """The policy, if its values are of the right types; raises `InvalidRequest`. The server checks their ranges."""
    match policy:
        case Async():
            _check(policy, "staleness", policy.staleness in (None, "inverse") or _is_scale(policy.staleness), _SCALES)
            _check(policy, "max_staleness", _is_count(policy.max_staleness, optional=True), _COUNT)
        case Sync():
            _check(policy, "workers", policy.workers == "live" or _is_count(policy.workers), "a number or 'live'")
            _check(policy, "quorum", _is_count(policy.quorum, optional=True), _COUNT)
            _check(policy, "grace", policy.grace in (None, "auto") or _is_number(policy.grace), "seconds or 'auto'")
            _check(policy, "round_seconds", policy.round_seconds is None or _is_number(policy.round_seconds), "seconds")
            _check(policy, "on_death", policy.on_death is None or policy.on_death in get_args(OnDeath), _DEATHS)
        case Bounded():
            _check(policy, "staleness", _is_count(policy.staleness), "a number of steps")
        case _:
            problem = f"policy must be optd.Async(...), optd.Sync(...) or optd.Bounded(...), got {policy!r}"
            raise InvalidRequest(problem=problem)
    return policy


_SCALES = "None, 'inverse' or optd.staleness.Exponential(...)"
_COUNT = "a number that is not negative, or None"
_DEATHS = "'wait', 'continue' or 'fail'"


def _check(policy: Policy, name: str, is_right: bool, wanted: str) -> None:
    if not is_right:
        value = getattr(policy, name)
        raise InvalidRequest(problem=f"{name} of optd.{type(policy).__name__} must be {wanted}, got {value!r}")


def _is_count(value: Any, *, optional: bool = False) -> bool:
    if value is None:
        return optional
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scale(value: Any) -> bool:
    if not isinstance(value, Exponential) or not _is_number(value.alpha):
        return False
    return value.cutoff is None or _is_number(value.cutoff)
