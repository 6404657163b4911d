"""Which rule each policy of the contract has."""

from optd_server.engine.rounds.policies.asynchronous import AsyncRule
from optd_server.engine.rounds.policies.base import PolicyRule
from optd_server.engine.rounds.policies.sync import SyncRule
from optd_wire.values import Async, JobSpec, Policy, Sync


def policy_of(spec: JobSpec) -> Policy:
    """The policy of a job that is created with `spec`."""
    return Async() if spec.policy is None else spec.policy


def rule_of(policy: Policy) -> PolicyRule:
    """A new rule for a job with this policy."""
    if isinstance(policy, Sync):
        return SyncRule(policy.workers)
    return AsyncRule()
