"""How far a job has come, and with it each of its workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Position(NamedTuple):
    """A point in the course of a job. Positions are ordered."""

    version: int
    rounds: int = 0
    """How many rounds have been accumulated since that version."""


BEGINNING = Position(0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come, as its policy has to know it."""

    at: Mapping[int, Position] = field(default_factory=dict)
    """By fragment, the end of its last round; 0: that of the job."""
    counted: Mapping[str, Position] = field(default_factory=dict)
    """By worker, the end of the last round that it was in, in its present epoch."""
