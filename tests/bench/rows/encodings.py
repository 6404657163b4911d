"""optd beside itself on the `grpc` lane: what is gained by sending less. Without aims."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench import ours
from bench.row import Row, Side, Sides, seconds
from bench.sizes import Size, model


def _against_float32(encoding: str) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        shapes = model(size.model)
        with (
            ours.server() as server,
            ours.job(server.address, shapes, name="encoded", lane="grpc", encoding=encoding) as encoded,
            ours.job(server.address, shapes, name="plain", lane="grpc") as plain,
        ):
            yield Sides(
                Side(seconds(encoded.step), encoded.weights), Side(seconds(plain.step), plain.weights), tolerance=None
            )

    return build


@contextmanager
def _unchanged(size: Size) -> Iterator[Sides]:
    shapes = model(size.model)
    with ours.server() as server, ours.job(server.address, shapes, lane="grpc") as mine:
        mine.step()
        yield Sides(Side(seconds(mine.pull_unchanged)), Side(seconds(mine.pull_all)))


ROWS = (
    *(
        Row(
            name=f"step(), {{model}}, gRPC over loopback, {encoding}",
            reference="in float32",
            build=_against_float32(encoding),
        )
        for encoding in ("int8", "topk:0.01")
    ),
    Row(
        name="pull() of an unchanged version, {model}, gRPC",
        reference="of all weights",
        build=_unchanged,
    ),
)
