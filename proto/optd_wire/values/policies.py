"""Policies: when pushes become a step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Async:
    """Makes a step of every push, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Sync:
    """Makes a step of every round: the mean of one push from each of `workers` workers."""

    workers: int


Policy = Async | Sync
