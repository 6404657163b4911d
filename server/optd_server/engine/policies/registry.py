"""Which rule each policy of the contract has."""

from optd_server.engine.policies.asynchronous import AsyncRule
from optd_server.engine.policies.base import PolicyRule
from optd_server.engine.policies.sync import SyncRule
from optd_wire.values import Policy, Sync


def rule_of(policy: Policy) -> PolicyRule:
    """A new rule for a job with this policy."""
    if isinstance(policy, Sync):
        return SyncRule(policy.workers)
    return AsyncRule()
