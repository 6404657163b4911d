"""step() of one worker on the `grpc` lane, over TCP loopback."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench import ours
from bench.row import Row, Side, Sides, seconds
from bench.sizes import Shapes, Size, model, single

FLOAT32 = (1e-6, 1e-6)
BFLOAT16 = (2.0**-8, 1e-5)
"""Weights have eight bits of mantissa; small ones also feel that gradients have no more."""


def _against_rpc(
    shapes_of: Callable[[int], Shapes], encoding: str, bounds: tuple[float, float]
) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        from bench.references.torch_rpc import torch_rpc

        shapes = shapes_of(size.model)
        with (
            ours.server() as server,
            ours.job(server.address, shapes, lane="grpc", encoding=encoding) as mine,
            torch_rpc(shapes) as theirs,
        ):
            yield Sides(Side(seconds(mine.step), mine.weights), theirs, *bounds)

    return build


ROWS = (
    Row(
        name="step(), {model}, gRPC over loopback",
        reference="torch.distributed.rpc",
        build=_against_rpc(model, "float32", FLOAT32),
        aim=1.0,
    ),
    Row(
        name="step(), {model} in one parameter, gRPC over loopback",
        reference="torch.distributed.rpc",
        build=_against_rpc(single, "float32", FLOAT32),
        aim=1.0,
    ),
    Row(
        name="step(), {model}, gRPC over loopback, bfloat16",
        reference="torch.distributed.rpc, float32",
        build=_against_rpc(model, "bfloat16", BFLOAT16),
        aim=0.6,
    ),
    Row(
        name="step(), {model} in one parameter, gRPC over loopback, bfloat16",
        reference="torch.distributed.rpc, float32",
        build=_against_rpc(single, "bfloat16", BFLOAT16),
        aim=0.6,
    ),
)
