"""How fast a server is for a worker that sits here: `bench`."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Protocol

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from optd.ctl import measuring, output, text
from optd.ctl.exits import BadUsage
from optd.ctl.invocation import Invocation
from optd.ctl.measuring import Measurement, Way
from optd.ctl.settings import seconds as checked_seconds
from optd.ctl.tables import Column, table
from optd_wire.errors import Expired, OptdError, Unauthenticated, Unavailable

SMALL = 1_000
"""Elements of a job whose steps measure latency alone."""
PLAIN = "float32"
LANES = ("grpc", "shm")
ENCODINGS = (PLAIN, "bfloat16", "float16", "int8", "topk:0.01")
NOT_MEASURED = (
    "several workers at the same time, or rounds of a sync job",
    "other algorithms than Adam, or many groups and parameters",
    "what else the server and this machine do meanwhile, which counts against them",
)
TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Skipped:
    """A combination that the server or the lane refused."""

    lane: str
    encoding: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bench:
    """The answer."""

    server: str
    server_version: str
    algorithm: str
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    not_measured: tuple[str, ...] = NOT_MEASURED


class Tell(Protocol):
    """Takes what is being measured, and the seconds that have passed since all began."""

    def __call__(self, what: str, passed: float) -> None:
        """Shows it, or does not."""


def bench(
    invocation: Invocation,
    elements: Annotated[
        int, typer.Option("--elements", min=1, metavar="N", help="Elements of the job that is stepped in bulk.")
    ] = 4_000_000,
    length: Annotated[
        float,
        typer.Option("--seconds", metavar="SECONDS", help="How long each measurement lasts.", callback=checked_seconds),
    ] = 2.0,
    lane: Annotated[
        list[str] | None,
        typer.Option("--lane", metavar="LANE", help=f"Only this lane ({', '.join(LANES)}); may be repeated."),
    ] = None,
    encoding: Annotated[
        list[str] | None,
        typer.Option(
            "--encoding", metavar="ENCODING", help=f"Only this encoding ({', '.join(ENCODINGS)}); may be repeated."
        ),
    ] = None,
) -> None:
    """Measure the server from here: latency, steps a second, and GB/s for each lane and encoding.

    Steps Adam in jobs of its own, one after the other, and deletes them.
    """
    _check("lane", lane, LANES)
    _check("encoding", encoding, ENCODINGS)
    status = invocation.server.ask(lambda server, left: server.server_status(left))
    small = [(Way(each, PLAIN), SMALL) for each in lane or LANES]
    bulk = [(way, elements) for way in _ways(lane, encoding)]
    with _progress(invocation, len(small + bulk) * length) as tell:
        measured, skipped = _measure(invocation, [*small, *bulk], length, tell)
    address = invocation.server.transport.address
    found = Bench(address, status.server_version, measuring.ALGORITHM, tuple(measured), tuple(skipped))
    invocation.answer(found, *_views(found))


def _ways(lanes: Sequence[str] | None, encodings: Sequence[str] | None) -> list[Way]:
    """Every lane with every encoding; where nobody asks for more, numbers in shared memory stay as they are."""
    return [
        Way(lane, encoding)
        for lane in lanes or LANES
        for encoding in encodings or (ENCODINGS if lane == "grpc" else (PLAIN,))
    ]


def _check(what: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raises `BadUsage` for a name that none of these has; what follows a colon is for the server to judge."""
    names = [one.partition(":")[0] for one in known]
    for one in given or ():
        if one.partition(":")[0] not in names:
            raise BadUsage(f"no {what} {one!r}; there are {', '.join(known)}")


def _measure(
    invocation: Invocation, plan: Sequence[tuple[Way, int]], length: float, tell: Tell
) -> tuple[list[Measurement], list[Skipped]]:
    measured: list[Measurement] = []
    skipped: list[Skipped] = []
    for number, (way, elements) in enumerate(plan):
        what = f"{way.lane} {way.encoding}, {text.count(elements)} elements"
        done = number * length

        def tell_here(passed: float, what: str = what, done: float = done) -> None:
            tell(what, done + min(passed, length))

        tell_here(0.0)
        try:
            measured.append(measuring.measure(invocation, way, elements, length, tell_here))
        except (Unauthenticated, Unavailable, Expired):
            raise
        except OptdError as error:
            if number == len(plan) - 1 and not measured:
                raise
            skipped.append(Skipped(way.lane, way.encoding, str(error)))
    return measured, skipped


@contextmanager
def _progress(invocation: Invocation, total: float) -> Iterator[Tell]:
    """A bar on a terminal; else nothing, so that the answer is all there is."""
    if invocation.json or not sys.stdout.isatty():
        yield lambda what, passed: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console(), transient=True, refresh_per_second=4) as progress:
        task = progress.add_task("", total=total)
        last = -TELL_SECONDS

        def tell(what: str, passed: float) -> None:
            # Short steps must not wait for the bar.
            nonlocal last
            if (now := time.monotonic()) - last >= TELL_SECONDS:
                last = now
                progress.update(task, description=what, completed=passed)

        yield tell


def _views(found: Bench) -> list[RenderableType]:
    columns = [
        Column("lane"),
        Column("encoding"),
        Column("elements", number=True),
        Column("p50 ms", number=True),
        Column("p99 ms", number=True),
        Column("steps/s", number=True),
        Column("GB/s", number=True),
        Column("steps", number=True, spare=True),
    ]
    rows = [
        [
            one.lane,
            one.encoding,
            text.count(one.elements),
            text.number(one.p50_ms),
            text.number(one.p99_ms),
            text.number(one.steps_per_second),
            text.number(one.gigabytes_per_second),
            text.count(one.steps),
        ]
        for one in found.measurements
    ]
    left_out = [f"left out: {one.lane} {one.encoding}: {one.reason}" for one in found.skipped]
    return [
        table(columns, rows),
        "",
        *left_out,
        "A step sends gradients and receives weights; GB/s counts both as float32, whatever the encoding.",
        *[f"Not measured: {what}." for what in found.not_measured],
    ]
