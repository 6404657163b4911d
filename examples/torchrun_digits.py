"""Ranks of torchrun that learn to read handwritten digits, and go on where they were if torchrun starts them again.

    OPTD_SERVER=127.0.0.1:50051 torchrun --nproc-per-node 2 --max-restarts 3 examples/torchrun_digits.py

The script names neither job nor worker nor policy: all of that follows from what torchrun sets. The server has the
weights and the optimizer's state, so the script needs no checkpoint: kill a rank, and see the next attempt go on. The
job's version is the number of steps so far, which tells every rank which batch comes next.
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks of torchrun that learn to read handwritten digits.")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of the job in all (default: {STEPS})")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    (images, labels), (test_images, test_labels) = (tensors(part) for part in network.load())

    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(images.shape[1], 32), nn.ReLU(), nn.Linear(32, 10)))
    # Attaches to the job of an earlier attempt: the model then has the weights of the job's version.
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    tell("begins", optimizer)
    while optimizer.version < steps:
        mine = batch(len(images), optimizer.version)[dist.get_rank() :: dist.get_world_size()]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[mine]), labels[mine]).backward()
        optimizer.step()
        if optimizer.version % REPORTS == 0:
            tell("is at", optimizer)
    with torch.no_grad():
        right = (model(test_images).argmax(1) == test_labels).float().mean().item()
    tell("ends", optimizer, accuracy=round(right, 4))
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
    about = {"rank": dist.get_rank(), "ranks": dist.get_world_size(), "process": os.getpid(), "job": session.job}
    line = {"what": what, "version": optimizer.version, "worker": session.worker, "epoch": session.epoch, **more}
    sys.stdout.write(json.dumps(about | line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
