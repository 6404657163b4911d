"""All rows, in the order of the table. A new one is one entry in the file of its family."""

from bench.row import Row
from bench.rows import (
    durability,
    encodings,
    kernels,
    latency,
    memory,
    neighbours,
    over_grpc,
    same_host,
    scale,
    sparse,
    workers,
)

ROWS: tuple[Row, ...] = (
    *kernels.ROWS,
    *same_host.ROWS,
    *over_grpc.ROWS,
    *workers.ROWS,
    *latency.ROWS,
    *neighbours.ROWS,
    *scale.ROWS,
    *memory.ROWS,
    *encodings.ROWS,
    *sparse.ROWS,
    *durability.ROWS,
)
