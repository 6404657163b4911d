"""The course of a job that a test makes up, for a policy that asks how far the job has come."""

from collections.abc import Iterable

from optd_server.engine.progress import BEGINNING, Position


class Course:
    """The progress of a job that a test makes up."""

    def __init__(self, at: Position) -> None:
        self.now = at
        self.fragments: dict[int, Position] = {}
        self.last_rounds: dict[tuple[str, int], Position] = {}
        self.joinings: dict[str, Position] = {}

    def end(self, workers: Iterable[str], fragment: int, *, accumulated: bool = False, skipped: bool = False) -> None:
        """Takes note of a round."""
        version, rounds = self.now
        if not skipped:
            self.now = Position(version, rounds + 1) if accumulated else Position(version + 1)
            self.fragments[fragment] = self.now
        self.last_rounds.update({(worker, fragment): self.now for worker in workers})

    def join(self, worker: str) -> None:
        self.joinings[worker] = self.now
        self.last_rounds = {key: at for key, at in self.last_rounds.items() if key[0] != worker}

    def at(self, fragment: int) -> Position:
        return self.fragments.get(fragment, BEGINNING) if fragment else self.now

    def last_round(self, worker: str, fragment: int) -> Position:
        return self.last_rounds.get((worker, fragment), BEGINNING)

    def joined(self, worker: str) -> Position:
        return self.joinings.get(worker, BEGINNING)
