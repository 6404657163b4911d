"""The registry of policies: each policy of the contract, with the class that decides for it."""

from collections.abc import Callable
from typing import Any

from optd_server.engine.rounds.policies.asynchronous import AsyncPolicy
from optd_server.engine.rounds.policies.base import Policy as Deciding
from optd_server.engine.rounds.policies.sync import SyncPolicy
from optd_wire.values import Async, JobSpec, Policy, Sync

_POLICIES: dict[type[Any], Callable[[Any], Deciding]] = {
    Async: AsyncPolicy,
    Sync: SyncPolicy,
}


def policy_of(spec: JobSpec) -> Policy:
    """Returns the policy of a job that is created with `spec`."""
    return Async() if spec.policy is None else spec.policy


def deciding(policy: Policy) -> Deciding:
    """Returns a new decider for a job with this policy; raises `InvalidPolicy`."""
    return _POLICIES[type(policy)](policy)
