"""A training script as people write them for torchrun; it names neither job nor policy. Run by test_ranks.py.

Each rank trains two models, as a GAN has them, with our optimizers and with torch's, and prints what it saw.
"""

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import optd
from optd.torch import SGD, Adam

STEPS = 3


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    models = [DistributedDataParallel(copy.deepcopy(model)) for _ in range(4)]
    ours = [Adam(models[0].parameters(), lr=0.1), SGD(models[1].parameters(), lr=0.1, momentum=0.9)]
    torchs = [
        torch.optim.Adam(models[2].parameters(), lr=0.1),
        torch.optim.SGD(models[3].parameters(), lr=0.1, momentum=0.9),
    ]
    for number in range(STEPS):
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(10 * number + rank))
        for each, optimizer in zip(models, [*ours, *torchs], strict=True):
            optimizer.zero_grad()
            each(inputs).square().mean().backward()
            optimizer.step()
    infos = [optimizer.session.info() for optimizer in ours]
    seen = {
        "rank": rank,
        "jobs": [info.name for info in infos],
        "versions": [optimizer.version for optimizer in ours],
        "workers": [info.policy.workers if isinstance(info.policy, optd.Sync) else 1 for info in infos],
        "on_server": len(optd.jobs()),
        "differs": max(
            (mine - theirs).abs().max().item()
            for ours_, theirs_ in ((models[0], models[2]), (models[1], models[3]))
            for mine, theirs in zip(ours_.parameters(), theirs_.parameters(), strict=True)
        ),
    }
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


main()
