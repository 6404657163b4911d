"""A training script for torchrun whose model has BatchNorm; run by test_buffers.py. Each rank prints what it saw."""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optd.torch import SGD

STEPS = 3


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double())
    optimizer = SGD(model.parameters(), lr=0.1, buffers=model)
    are_means = []
    for number in range(STEPS):
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(10 * number + rank), dtype=torch.float64)
        optimizer.zero_grad()
        model(inputs + 5).square().mean().backward()
        means = [buffer.clone() for buffer in model.module.buffers()]
        for mean in means:
            dist.all_reduce(mean)
        optimizer.step()
        pairs = zip(model.module.buffers(), means, strict=True)
        are_means.append(all(torch.equal(buffer, (mean * 0.5).to(buffer.dtype)) for buffer, mean in pairs))
    buffers = {name: buffer.tolist() for name, buffer in model.module.named_buffers()}
    groups = [group.options.group for group in optimizer.session.groups()]
    sys.stdout.write(json.dumps({"are_means": are_means, "buffers": buffers, "groups": groups}) + "\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


main()
