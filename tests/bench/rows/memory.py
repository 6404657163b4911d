"""What the server takes of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench import ours
from bench.processes import CONTEXT, children
from bench.row import MEGABYTES, Row, Side, Sides
from bench.sizes import Size, count, model

WORKERS = 4
ROUNDS = 3
FLOAT32_BYTES = 4


@contextmanager
def _peak(size: Size) -> Iterator[Sides]:
    shapes = model(size.plenty)
    barrier = CONTEXT.Barrier(WORKERS)
    hows = [
        {"worker": f"w{number}", "gradients": 2 + number, "workers": WORKERS, "lane": "grpc"}
        for number in range(WORKERS)
    ]
    with (
        ours.server() as server,
        children(*[(ours.worker, server.address, shapes, barrier, how) for how in hows]) as workers,
    ):

        def measure() -> float:
            for _ in range(ROUNDS):
                for worker in workers:
                    worker.tell("step")
                for worker in workers:
                    worker.answer()
            return ours.peak_bytes(server.process.pid)

        yield Sides(Side(measure), Side(lambda: count(shapes) * FLOAT32_BYTES))


ROWS = (
    Row(
        name="server's peak memory, Adam, {plenty}, 4 workers over gRPC",
        reference="bytes of the parameters",
        build=_peak,
        unit=MEGABYTES,
        aim=5.5,
        once=True,
    ),
)
