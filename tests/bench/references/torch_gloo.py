"""Two processes of torch that average their gradients with gloo, and step on their own."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.ours import processors
from bench.processes import CONTEXT, children, in_rounds
from bench.references.noise import quiet
from bench.row import Side
from bench.sizes import Shapes


@contextmanager
def torch_gloo(shapes: Shapes, seeds: tuple[int, ...]) -> Iterator[Side]:
    """A worker for each seed of gradients; a round lasts until the slower one has its weights."""
    with tempfile.TemporaryDirectory(prefix="optd-bench-") as scratch:
        barrier = CONTEXT.Barrier(len(seeds))
        meeting = Path(scratch) / "gloo"
        services = [(_worker, meeting, rank, len(seeds), shapes, seed, barrier) for rank, seed in enumerate(seeds)]
        with children(*services) as workers:

            def round_() -> float:
                for worker in workers:
                    worker.tell("step")
                return max(worker.answer() for worker in workers)

            yield Side(round_, lambda: workers[0].ask("weights"))


@contextmanager
def _worker(
    meeting: Path, rank: int, world: int, shapes: Shapes, seed: int, barrier: Any
) -> Iterator[Callable[..., Any]]:
    quiet()
    import torch
    from torch import distributed

    from bench.references.local_torch import LocalTorch

    torch.set_num_threads(max(processors() // world, 1))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=world)
    local = LocalTorch("adam", {"lr": 1e-3, "fused": True}, shapes, seed)
    own = [parameter.grad for parameter in local.parameters]
    # One buffer for all, as DistributedDataParallel has it (in buckets), of which the gradients are views.
    flat = torch.empty(sum(gradient.numel() for gradient in own))
    parts = [part.view_as(gradient) for part, gradient in zip(flat.split([g.numel() for g in own]), own, strict=True)]
    for parameter, part in zip(local.parameters, parts, strict=True):
        parameter.grad = part

    def step() -> None:
        distributed.all_reduce(flat)
        flat.div_(world)
        local.step()

    rounds = in_rounds(step, local.weights, barrier)

    def handle(request: str) -> Any:
        if request == "step":  # backward would have put its gradients there
            for part, gradient in zip(parts, own, strict=True):
                part.copy_(gradient)
        return rounds(request)

    yield handle
    distributed.destroy_process_group()
