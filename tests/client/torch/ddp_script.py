"""A training script as people write them for torchrun; it names neither job nor policy. Run by test_ranks.py.

Each rank trains two models, as a GAN has them, with our optimizers and with torch's, and prints what it saw.
"""

import copy
import json
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import optd
from optd.torch import SGD, Adam

STEPS = 3


def difference(order: str, rank: int) -> float:
    """How far training of ours ends from torch's if all ranks change the weights alike: a letter for each thing done.

    m: the model is loaded, l: the optimizer is loaded, s: a step, c: a step and a clamp.
    """
    ends = [list(changed(order, rank, kind)) for kind in (torch.optim.Adam, Adam)]
    return max((mine - theirs).abs().max().item() for theirs, mine in zip(*ends, strict=True))


def changed(order: str, rank: int, kind: type[torch.optim.Optimizer]) -> Iterator[torch.Tensor]:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(nn.Linear(4, 2).double())
    saved = torch.optim.Adam(models[1].parameters(), lr=0.1)
    models[1](torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    saved.step()
    wrapped = DistributedDataParallel(models[0])
    optimizer = kind(wrapped.parameters(), lr=0.1)
    for number, what in enumerate(order + "ss"):
        if what == "m":
            models[0].load_state_dict(models[1].state_dict())
        elif what == "l":
            optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
        else:
            generator = torch.Generator().manual_seed(10 * number + rank)
            inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            wrapped(inputs).square().mean().backward()
            optimizer.step()
        if what == "c":
            for parameter in models[0].parameters():
                parameter.data.clamp_(-0.2, 0.2)
    return (parameter.detach() for parameter in models[0].parameters())


def refusal_of_a_shard() -> str:
    sharded = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    try:
        SGD(sharded.parameters(), lr=0.1)
    except optd.errors.NotAnArray as error:
        return str(error)
    return ""


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
        "on_server": sum(job.name in [info.name for info in infos] for job in optd.jobs()),
        "differs": max(
            (mine - theirs).abs().max().item()
            for ours_, theirs_ in ((models[0], models[2]), (models[1], models[3]))
            for mine, theirs in zip(ours_.parameters(), theirs_.parameters(), strict=True)
        ),
    }
    seen["changed"] = {order: difference(order, rank) for order in ("m", "lm", "sm", "ml", "cc")}
    seen["shard"] = refusal_of_a_shard()
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


main()
