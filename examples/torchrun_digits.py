"""Ranks of torchrun that learn to read handwritten digits, and go on where they were if torchrun starts them again.

    OPTD_SERVER=127.0.0.1:50051 torchrun --nproc-per-node 2 --max-restarts 3 examples/torchrun_digits.py

The script names neither job nor worker nor policy: all of that follows from what torchrun sets. Each rank pushes the
gradient of its part of a batch, and the server steps with the mean of all ranks. The server has the weights and the
optimizer's state, so the script needs no checkpoint: kill a rank, and see the next attempt go on. The job's version is
the number of steps so far, which tells every rank which batch comes next, also if there are more or fewer ranks now.

With --ddp the ranks also reduce their gradients among themselves, as scripts for DistributedDataParallel do. Then set
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, so that gloo does not look for ranks of the attempt before, and hang.
"""

import argparse
import json
import os
import sys

import network
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optd.torch import SGD

BATCH = 64
STEPS = 400
REPORTS = 20
"""A line of progress every so many steps."""
RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks of torchrun that learn to read handwritten digits.")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of the job in all (default: {STEPS})")
    parser.add_argument("--ddp", action="store_true", help="wrap the model in DistributedDataParallel")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (images, labels), (test_images, test_labels) = (tensors(part) for part in network.load())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(images.shape[1], 32), nn.ReLU(), nn.Linear(32, 10))
    if options.ddp:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    # Attaches to the job of an earlier attempt: the model then has the weights of the job's version.
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    tell("begins", optimizer)
    while optimizer.version < options.steps:
        mine = batch(len(images), optimizer.version)[RANK::RANKS]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[mine]), labels[mine]).backward()
        optimizer.step(weight=len(mine))
        if optimizer.version % REPORTS == 0:
            tell("is at", optimizer)
    with torch.no_grad():
        right = (model(test_images).argmax(1) == test_labels).float().mean().item()
    tell("ends", optimizer, accuracy=round(right, 4))
    if options.ddp:
        dist.destroy_process_group()


def tensors(part: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as tensors."""
    return torch.from_numpy(part.images).float(), torch.from_numpy(part.labels).long()


def batch(examples: int, version: int) -> torch.Tensor:
    """The examples of a step, the same for every rank, attempt and number of ranks."""
    each = examples // BATCH
    epoch, place = divmod(version, each)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(epoch))
    return order[place * BATCH : (place + 1) * BATCH]


def tell(what: str, optimizer: SGD, **more: float) -> None:
    """A line of JSON about this rank. In one write, so that the lines of ranks do not mix."""
    session = optimizer.session
    about = {"rank": RANK, "ranks": RANKS, "process": os.getpid(), "job": session.job}
    line = {"what": what, "version": optimizer.version, "worker": session.worker, "epoch": session.epoch, **more}
    sys.stdout.write(json.dumps(about | line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
