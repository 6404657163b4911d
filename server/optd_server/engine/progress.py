"""How far a job has come, and with it each of its workers."""

from typing import NamedTuple, Protocol


class Position(NamedTuple):
    """A point in the course of a job. Positions are ordered."""

    version: int
    rounds: int = 0
    """How many rounds have been accumulated since that version."""


BEGINNING = Position(0)


class Progress(Protocol):
    """What a policy reads from the state of its job."""

    def at(self, fragment: int) -> Position:
        """Return the end of the last round of a fragment; 0: of the job."""

    def last_round(self, worker: str, fragment: int) -> Position:
        """Return the end of the last round of a fragment that a worker was in, as far as its session knows."""

    def joined(self, worker: str) -> Position:
        """Return where the job was when a worker joined."""


class NoSteps:
    """The progress of a job that has not begun."""

    def at(self, fragment: int) -> Position:
        """Return the beginning."""
        return BEGINNING

    def last_round(self, worker: str, fragment: int) -> Position:
        """Return the beginning."""
        return BEGINNING

    def joined(self, worker: str) -> Position:
        """Return the beginning."""
        return BEGINNING
