"""Values: what pushes bring for the weights of an algorithm that takes no gradients, such as `assign` for buffers.

What a job's options do to gradients leaves values alone. They are neither scaled nor clipped and count in no norm. They
combine as their mean, also where gradients are summed. A NaN among them never counts as zero. An average of the weights
has a copy of the newest ones, as `torch.optim.swa_utils.AveragedModel` has of buffers.
"""

from optd_server.optim.algorithms import registry


def takes_values(algorithm: str) -> bool:
    """Whether an algorithm takes values for its weights, not gradients. The kind of a slab is its algorithm."""
    found = registry.find(algorithm)
    return found is not None and found.takes_values
