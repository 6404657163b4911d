"""optd beside itself: does twice as much take twice as long, and what do groups cost?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import ours
from bench.row import MILLISECONDS, NANOSECONDS_PER_ELEMENT, Row, Side, Sides, seconds
from bench.sizes import Size, mixed, model

SMALL_STEPS = 10
"""Steps of the small job in a sample."""


@contextmanager
def _elements(size: Size) -> Iterator[Sides]:
    with (
        ours.server() as server,
        ours.job(server.address, model(size.plenty), name="plenty") as plenty,
        ours.job(server.address, model(size.few), name="few") as few,
    ):
        yield Sides(
            Side(_per_element(plenty, size.plenty, 1), plenty.weights),
            Side(_per_element(few, size.few, SMALL_STEPS), few.weights),
            tolerance=None,
        )


def _per_element(job: ours.Job, elements: int, steps: int) -> Callable[[], float]:
    def work() -> None:
        for _ in range(steps):
            job.step()

    measure = seconds(work)
    return lambda: measure() / steps / elements


@contextmanager
def _groups(size: Size) -> Iterator[Sides]:
    shapes = mixed(size.grouped, size.groups)
    with (
        ours.server() as server,
        ours.job(server.address, shapes, name="many", groups=size.groups) as many,
        ours.job(server.address, shapes, name="one") as one,
    ):
        yield Sides(Side(seconds(many.step), many.weights), Side(seconds(one.step), one.weights))


ROWS = (
    Row(
        name="step() of {plenty}, same host",
        reference="step() of {few}",
        build=_elements,
        unit=NANOSECONDS_PER_ELEMENT,
        aim=1.5,
    ),
    Row(
        name="step(), {grouped} in {groups} groups, same host",
        reference="in one group",
        build=_groups,
        unit=MILLISECONDS,
        aim=1.3,
    ),
)
