"""Synchronous workers: a whole round, from the barrier that starts it until the slower one has its weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench import ours
from bench.processes import CONTEXT, children
from bench.row import Row, Side, Sides
from bench.sizes import Size, model

SEEDS = (2, 3)
"""Of the gradients: a worker each."""


def _against_gloo(zero_copy: bool) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        from bench.references.torch_gloo import torch_gloo

        shapes = model(size.model)
        barrier = CONTEXT.Barrier(len(SEEDS))
        hows = [
            {"worker": f"w{seed}", "gradients": seed, "workers": len(SEEDS), "zero_copy": zero_copy} for seed in SEEDS
        ]
        with (
            ours.server() as server,
            children(*[(ours.worker, server.address, shapes, barrier, how) for how in hows]) as workers,
            torch_gloo(shapes, SEEDS) as theirs,
        ):

            def measure() -> float:
                for worker in workers:
                    worker.tell("step")
                return max(worker.answer() for worker in workers)

            yield Sides(Side(measure, lambda: workers[0].ask("weights")), theirs)

    return build


ROWS = (
    Row(
        name="round of 2 workers, {model}, same host, shared views",
        reference="gloo all-reduce + torch fused",
        build=_against_gloo(zero_copy=True),
        aim=0.4,
    ),
    Row(
        name="round of 2 workers, {model}, same host, ordinary arrays",
        reference="gloo all-reduce + torch fused",
        build=_against_gloo(zero_copy=False),
    ),
)
