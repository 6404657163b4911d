"""Lanes: how the numbers of pushes and pulls travel. All other calls go over the connection directly."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optd.transport.numbers import Sink, Source, StepSink
from optd.transport.requests import PullRequest
from optd_wire.frames import Frame, Outgoing
from optd_wire.values import FlatRange, PullResult, PushHeader, PushResult

Array = npt.NDArray[Any]


class Member(NamedTuple):
    """A worker that has joined a job, under its epoch."""

    job: str
    worker: str
    epoch: int


class SharedBuffers(ABC):
    """Memory that a lane shares with the server: gradients are written there, weights may be read there."""

    gradients: list[list[Array]]
    """The memory that the server reads gradients from, by group and segment of its flat buffer."""
    writable: bool
    """Whether the caller lets others write to weights in place; the lane then undoes that before it shows new ones."""

    @abstractmethod
    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether an array lies where the server reads gradients."""


@dataclass(frozen=True, slots=True)
class PlacedGradients:
    """A source of gradients that already lie in a lane's buffers: in `ranges`, or of all parameters if None."""

    buffers: SharedBuffers
    ranges: tuple[FlatRange, ...] | None
    source: Source

    def __call__(self) -> Iterator[Sequence[Outgoing]]:
        """The gradients as frames, for another lane."""
        return self.source()


class PlacedWeights(list[Frame]):
    """Weights where they lie in a lane's buffers: the same object whenever they lie in the same place."""


class Lane(ABC):
    """Pushes and pulls of one worker. One call at a time; each blocks and raises as the calls of the connection do."""

    name: str

    @property
    def buffers(self) -> SharedBuffers | None:
        """Memory that the lane shares with the server; None if numbers travel in messages."""
        return None

    @abstractmethod
    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; blocks until they are part of a step."""

    @abstractmethod
    def step(
        self,
        header: PushHeader,
        gradients: Source,
        weights: StepSink,
        timeout: float,
        *,
        in_place: Sink | None,
        encoding: str,
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls.

        `in_place`, if given, takes weights that may stay where they are until the next call; `weights` takes all
        others. `encoding` is how messages carry weights, empty for unchanged; gradients travel as their frames are
        made.
        """

    @abstractmethod
    def pull(
        self, request: PullRequest, weights: Sink, timeout: float, *, in_place: Sink | None, encoding: str
    ) -> PullResult:
        """Reads the current weights."""

    @abstractmethod
    def keep(self) -> None:
        """Makes weights in place keep their values after the server has reused their memory."""

    @abstractmethod
    def close(self) -> None:
        """Gives up what the lane holds; the connection stays open."""


def refuse_weights(_: object) -> None:
    """The sink of a push, which asks for no weights."""
    raise AssertionError("weights came that nobody has asked for")
