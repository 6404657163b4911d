"""What a row is: two sides of one comparison, and what it aims at."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np

from bench.sizes import Size


class NotAvailable(Exception):
    """This optd, or this machine, lacks what the row measures; the message says what."""


class Wrong(Exception):
    """A side has not done the work: its weights are not what they have to be."""


@dataclass(frozen=True)
class Unit:
    """How a measured number is shown."""

    name: str
    scale: float
    """What seconds, bytes or counts a second are multiplied with."""

    def show(self, value: float) -> str:
        """Three significant digits, without the unit's name."""
        shown = value * self.scale
        return f"{shown:,.0f}" if abs(shown) >= 100 else f"{shown:.3g}"


MILLISECONDS = Unit("ms", 1e3)
MICROSECONDS = Unit("µs", 1e6)
NANOSECONDS_PER_ELEMENT = Unit("ns/element", 1e9)
PER_SECOND = Unit("/s", 1)
MEGABYTES = Unit("MB", 1e-6)
MEGABYTES_PER_SECOND = Unit("MB/s", 1e-6)
GIGABYTES = Unit("GB", 1e-9)


def _nothing() -> None: ...


@dataclass(frozen=True)
class Side:
    """One of the two that are compared. All of it runs in the harness's process, and may ask other processes."""

    measure: Callable[[], float]
    """Does the work once and returns one sample: seconds, bytes, or a count a second."""
    weights: Callable[[], np.ndarray] | None = None
    """All weights as they are where the gradients come from, one after the other, in an array of its own."""
    resume: Callable[[], None] = _nothing
    """Called before its turn."""
    pause: Callable[[], None] = _nothing
    """Called after its turn: what would take the processor from the other side has to stand still."""


@dataclass(frozen=True)
class Sides:
    """What a row's builder yields, set up and ready to run."""

    ours: Side
    reference: Side | None = None
    tolerance: float | None = 1e-6
    """How far weights of both sides may be apart after the same steps, relative to the element. None where they
    compute different things: then weights only have to change."""
    floor: float = 1e-6
    """How far they may be apart besides, relative to the largest of all: where terms cancel."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    """What is measured, for people; `--only` looks for its pattern here. `{...}` takes fields of the size."""
    reference: str
    """What it is compared with."""
    build: Callable[[Size], AbstractContextManager[Sides]]
    """Sets both sides up, yields them, and takes them down."""
    unit: Unit = MILLISECONDS
    aim: float | None = None
    """What ours / reference should be: at most, or where more is better, at least. None where there is no aim."""
    better: Literal["less", "more"] = "less"
    once: bool = False
    """Whether one sample of each side is all, without a warm-up: for a peak, which another sample cannot lower."""

    def title(self, size: Size) -> str:
        """The name with the size's numbers."""
        return self._filled(self.name, size)

    def beside(self, size: Size) -> str:
        """The reference with the size's numbers."""
        return self._filled(self.reference, size)

    def _filled(self, text: str, size: Size) -> str:
        return text.format(**size.words())

    def meets(self, ratio: float) -> bool | None:
        """Whether a ratio meets the aim; None where there is none."""
        if self.aim is None:
            return None
        return ratio <= self.aim if self.better == "less" else ratio >= self.aim


def seconds(work: Callable[[], Any]) -> Callable[[], float]:
    """A measure: how long one call of `work` takes."""

    def measure() -> float:
        began = perf_counter()
        work()
        return perf_counter() - began

    return measure
