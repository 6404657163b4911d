"""The registry of policies: each policy of the contract, with the class that decides for it."""

from collections.abc import Callable
from typing import Any

from optd_server.engine.progress import NoSteps, Progress
from optd_server.engine.rounds.policies.asynchronous import AsyncPolicy
from optd_server.engine.rounds.policies.base import Policy as Decider
from optd_server.engine.rounds.policies.bounded import BoundedPolicy
from optd_server.engine.rounds.policies.sync import SyncPolicy
from optd_server.engine.step.staleness import check_scale
from optd_wire.values import Async, Bounded, JobSpec, Policy, Sync


def _asynchronous(given: Async, _: Progress) -> Decider:
    check_scale(given)
    return AsyncPolicy()


_POLICIES: dict[type[Any], Callable[[Any, Progress], Decider]] = {
    Async: _asynchronous,
    Sync: SyncPolicy,
    Bounded: lambda given, _: BoundedPolicy(given),
}


NO_STEPS = NoSteps()


def policy_of(spec: JobSpec) -> Policy:
    """Return the policy of a job that is created with `spec`."""
    return Async() if spec.policy is None else spec.policy


def decider_of(policy: Policy, progress: Progress = NO_STEPS) -> Decider:
    """Return a new decider for a job with this policy, which has come so far; raise `InvalidPolicy`."""
    return _POLICIES[type(policy)](policy, progress)
