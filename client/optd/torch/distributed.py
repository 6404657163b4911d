"""The job and the policy that the ranks of torch.distributed share, unless these are named."""

import itertools
import os

import torch.distributed

from optd.session.job_names import JobName, own_job
from optd_wire.values import Policy, Sync

_numbers = itertools.count(1)


def ranks() -> int:
    """The number of ranks of torch.distributed; 1 if it does not run."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if running else 1


def shared_by_ranks() -> JobName | None:
    """A name for the n-th optimizer of each rank, on which the ranks agree without waiting; None for one rank.

    The first rank to ask chooses it. Every launch has new names, so that its jobs hold nothing of an earlier launch.
    """
    if ranks() < 2:
        return None
    # The store through which the ranks met. torch has no public name for it; its own libraries use this one.
    store = torch.distributed.distributed_c10d._get_default_store()
    # Ranks that torchrun restarts find the store as they left it, but begin with the script's own checkpoint.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    chosen = store.compare_set(f"optd/job/{attempt}/{next(_numbers)}", "", own_job().name)
    return JobName(chosen.decode(), unnamed=True)


def policy_of_ranks() -> Policy | None:
    """The policy of a job that the ranks share: one step of all their gradients; None for one rank."""
    count = ranks()
    return Sync(workers=count) if count > 1 else None
