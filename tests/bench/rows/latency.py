"""Small jobs, where bytes are few and every call counts; beside bare gRPC with as many bytes."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench import ours
from bench.in_engine import in_engine
from bench.processes import Child, children
from bench.references import grpc_echo
from bench.row import MICROSECONDS, PER_SECOND, Row, Side, Sides, seconds
from bench.sizes import Size, single

FLOAT32_BYTES = 4
ANSWER_BYTES = 64
"""What a push is answered with: versions, and no weights."""


def _median_of(times: int, work: Callable[[], Any]) -> Callable[[], float]:
    measure = seconds(work)
    return lambda: statistics.median(measure() for _ in range(times))


@contextmanager
def _step(size: Size) -> Iterator[Sides]:
    payload = size.small * FLOAT32_BYTES
    with (
        ours.server() as server,
        ours.job(server.address, single(size.small)) as mine,
        grpc_echo.echo_server(payload) as address,
        grpc_echo.echo_client(address, payload) as exchange,
    ):
        ours_side = Side(_median_of(size.small_steps, mine.step), mine.weights)
        yield Sides(ours_side, Side(_median_of(size.small_steps, exchange)))


@contextmanager
def _in_engine(size: Size) -> Iterator[Sides]:
    payload = size.small * FLOAT32_BYTES
    with (
        in_engine(single(size.small)) as mine,
        grpc_echo.echo_server(payload) as address,
        grpc_echo.echo_client(address, payload) as exchange,
    ):
        ours_side = Side(lambda: mine.median(size.small_steps), mine.weights)
        yield Sides(ours_side, Side(_median_of(size.small_steps, exchange)))


@contextmanager
def _pushes(size: Size) -> Iterator[Sides]:
    with ours.server() as server, grpc_echo.echo_server(ANSWER_BYTES) as address:
        mine = [(ours.pusher, server.address, size.small, f"bench-{number}") for number in range(size.clients)]
        theirs = [(grpc_echo.echo_pusher, address, size.small * FLOAT32_BYTES)] * size.clients
        with children(*mine) as pushers, children(*theirs) as echoers:
            yield Sides(Side(together(pushers, size)), Side(together(echoers, size)))


def together(clients: list[Child], size: Size) -> Callable[[], float]:
    """A measure: all at the same time; the sum of what each gets done in a second."""

    def measure() -> float:
        for client in clients:
            client.tell(size.push_seconds)
        return sum(client.answer() for client in clients)

    return measure


ROWS = (
    Row(
        name="step() of {small} elements, median",
        reference="bare gRPC echo, as many bytes",
        build=_step,
        unit=MICROSECONDS,
        aim=1.5,
    ),
    Row(
        name="step of {small} elements in the engine, no transport, median",
        reference="bare gRPC echo, as many bytes",
        build=_in_engine,
        unit=MICROSECONDS,
        aim=0.35,
    ),
    Row(
        name="pushes of {small} elements, {clients} workers",
        reference="bare gRPC, as many bytes",
        build=_pushes,
        unit=PER_SECOND,
        aim=0.6,
        better="more",
    ),
)
