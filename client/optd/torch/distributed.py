"""Jobs that the ranks of torch.distributed share, where nobody has named a job or a policy."""

import itertools
import os

import torch.distributed

from optd.session.job_names import JobName, own_job
from optd_wire.values import Policy, Sync

_numbers = itertools.count(1)


def ranks() -> int:
    """With how many ranks torch.distributed runs; 1 where it does not."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if running else 1


def shared_by_ranks() -> JobName | None:
    """A name for the n-th optimizer of each rank, on which they agree without waiting; None where there is one rank.

    The first rank to ask chooses it. It is new with every launch, so that nothing of an earlier one is in its job.
    """
    if ranks() < 2:
        return None
    # The store that the ranks met in. torch has no public name for it; its own libraries use this one.
    store = torch.distributed.distributed_c10d._get_default_store()
    # Ranks that torchrun starts again find the store as they left it, and begin with the script's own checkpoint.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    chosen = store.compare_set(f"optd/job/{attempt}/{next(_numbers)}", "", own_job().name)
    return JobName(chosen.decode(), unnamed=True)


def policy_of_ranks() -> Policy | None:
    """The policy of a job that the ranks share: a step of all of their gradients; None where there is one rank."""
    count = ranks()
    return Sync(workers=count) if count > 1 else None
