"""step() of one worker on the server's host, by the lane that it takes there by itself."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench import ours
from bench.row import Row, Side, Sides, seconds
from bench.sizes import Shapes, Size, model, single


def _against_local_torch(zero_copy: bool) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        from bench.references.local_torch import local_torch

        shapes = model(size.model)
        with (
            ours.server() as server,
            ours.job(server.address, shapes, zero_copy=zero_copy) as mine,
            local_torch("adam", {"lr": 1e-3, "fused": True}, shapes) as theirs,
        ):
            yield Sides(Side(seconds(mine.step), mine.weights), Side(seconds(theirs.step), theirs.weights))

    return build


def _against_rpc(shapes_of: Callable[[int], Shapes]) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        from bench.references.torch_rpc import torch_rpc

        shapes = shapes_of(size.model)
        with (
            ours.server() as server,
            ours.job(server.address, shapes) as mine,
            torch_rpc(shapes) as theirs,
        ):
            yield Sides(Side(seconds(mine.step), mine.weights), theirs)

    return build


ROWS = (
    Row(
        name="step(), {model}, same host, shared views",
        reference="local torch fused",
        build=_against_local_torch(zero_copy=True),
        aim=1.3,
    ),
    Row(
        name="step(), {model}, same host, ordinary arrays",
        reference="local torch fused",
        build=_against_local_torch(zero_copy=False),
        aim=2.5,
    ),
    Row(
        name="step(), {model}, same host, ordinary arrays",
        reference="torch.distributed.rpc",
        build=_against_rpc(model),
        aim=0.3,
    ),
    Row(
        name="step(), {model} in one parameter, same host, ordinary arrays",
        reference="torch.distributed.rpc",
        build=_against_rpc(single),
        aim=0.3,
    ),
)
