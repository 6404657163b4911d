"""The job and the policy that ranks share, unless these are named: those of torchrun, or of torch.distributed alone."""

import itertools

import torch.distributed

from optd.session.job_names import JobName, launch, own_job
from optd_wire.values import Policy, Sync

_numbers = itertools.count(1)


def ranks() -> int:
    """The number of ranks of torch.distributed, or, if it does not run, of this launch; 1 if there is neither."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    launched = launch()
    return 1 if launched is None else launched.count


def shared_by_ranks() -> JobName | None:
    """A name for the n-th optimizer of each rank, on which the ranks agree without waiting.

    None for one rank, and for ranks whose launch has names for jobs. The first rank to ask chooses it.
    """
    if launch() is not None or ranks() < 2:
        return None
    # The store through which the ranks met. torch has no public name for it; its own libraries use this one.
    store = torch.distributed.distributed_c10d._get_default_store()
    chosen = store.compare_set(f"optd/job/{next(_numbers)}", "", own_job().name)
    return JobName(chosen.decode(), unnamed=True)


def policy_of_ranks() -> Policy | None:
    """The policy of a job that the ranks share: one step of all their gradients; None without ranks.

    Not "live": a rank that comes first would step alone, and a mean over fewer ranks is another training. If a launcher
    starts another number of ranks, the job follows (`optd.registration.rank_policy`).

    On one host the launcher ends all ranks if one of them dies, so their rounds wait for its successor. On several
    hosts only a round that fails tells the others: their ranks end with `WorkerLost`, and are started again.
    """
    count, launched = ranks(), launch()
    if launched is not None and launched.hosts > 1:
        return Sync(workers=count, on_death="fail")
    return Sync(workers=count) if count > 1 or launched is not None else None
