"""What can be wrong with a data directory, said with the file and the place."""

from pathlib import Path


class StorageProblem(Exception):
    """Why a data directory, or a job in it, cannot be used."""


class Damage(StorageProblem):
    """Bytes that were durable are no longer what they were."""

    def __init__(self, path: Path, offset: int, problem: str) -> None:
        super().__init__(f"{path} is damaged at byte {offset}: {problem}")
        self.path = path
        self.offset = offset
        self.problem = problem


class NewerFormat(StorageProblem):
    """A file of a later version of optd."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"{path} has format {found}, and this version of optd reads formats up to {known}: start a newer optd"
        )


class InUse(StorageProblem):
    """Another server has the data directory."""


class NoDataDir(StorageProblem):
    """A folder that no server has kept jobs in."""
