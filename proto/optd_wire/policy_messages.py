"""Policies to messages and back. They are converted by hand, because their values are handier than their messages."""

from typing import Any

from optd_wire.v1 import job_pb2 as pb
from optd_wire.values.policies import Async, Bounded, Exponential, OnDeath, Policy, Sync

_ON_DEATH: dict[OnDeath | None, Any] = {
    None: pb.ON_DEATH_UNSPECIFIED,
    "wait": pb.ON_DEATH_WAIT,
    "continue": pb.ON_DEATH_CONTINUE,
    "fail": pb.ON_DEATH_FAIL,
}
_ON_DEATH_OF = {number: name for name, number in _ON_DEATH.items()}


def fill_policy(message: pb.Policy, policy: Policy) -> None:
    """Write a policy to an empty message."""
    match policy:
        case Async():
            _fill_async(getattr(message, "async"), policy)
        case Sync():
            _fill_sync(message.sync, policy)
        case Bounded():
            message.bounded.SetInParent()
            message.bounded.staleness = policy.staleness


def _fill_async(message: pb.AsyncPolicy, policy: Async) -> None:
    message.SetInParent()
    match policy.staleness:
        case "inverse":
            message.staleness.inverse = True
        case Exponential(alpha, cutoff):
            message.staleness.exponential.alpha = alpha
            if cutoff is not None:
                message.staleness.exponential.cutoff = cutoff
    if policy.max_staleness is not None:
        message.max_staleness = policy.max_staleness


def _fill_sync(message: pb.SyncPolicy, policy: Sync) -> None:
    message.SetInParent()
    if policy.workers == "live":
        message.live = True
    else:
        message.workers = policy.workers
    if policy.quorum is not None:
        message.quorum = policy.quorum
    if policy.grace == "auto":
        message.grace_auto = True
    elif policy.grace is not None:
        message.grace_seconds = policy.grace
    if policy.round_seconds is not None:
        message.round_seconds = policy.round_seconds
    message.on_death = _ON_DEATH[policy.on_death]


def policy_from_message(message: pb.Policy) -> Policy:
    """Return the policy in a message; `Async()` if it is unset."""
    match message.WhichOneof("kind"):
        case "sync":
            return _sync(message.sync)
        case "bounded":
            return Bounded(message.bounded.staleness)
        case _:
            return _async(getattr(message, "async"))


def _async(message: pb.AsyncPolicy) -> Async:
    most = message.max_staleness if message.HasField("max_staleness") else None
    match message.staleness.WhichOneof("kind"):
        case "inverse":
            return Async("inverse", most)
        case "exponential":
            scale = message.staleness.exponential
            return Async(Exponential(scale.alpha, scale.cutoff if scale.HasField("cutoff") else None), most)
        case _:
            return Async(None, most)


def _sync(message: pb.SyncPolicy) -> Sync:
    arm = message.WhichOneof("grace")
    return Sync(
        workers="live" if message.live else message.workers,
        quorum=message.quorum if message.HasField("quorum") else None,
        grace=None if arm is None else "auto" if arm == "grace_auto" else message.grace_seconds,
        round_seconds=message.round_seconds if message.HasField("round_seconds") else None,
        on_death=_ON_DEATH_OF.get(message.on_death),
    )
