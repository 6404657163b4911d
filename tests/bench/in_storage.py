"""The recovery of a job in this process, without a server."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.ours import processors
from optd_server.durability.data_dir import DataDir, JobFolder
from optd_server.durability.recovery import Recovered, recover
from optd_server.engine.compute import Compute
from optd_server.optim.backends.registry import choose


@dataclass(frozen=True)
class InStorage:
    """The one job of a data directory that no server has."""

    folder: JobFolder

    @classmethod
    def of(cls, data_dir: Path) -> "InStorage":
        """The job of this directory."""
        opened = DataDir.open(data_dir)
        try:
            (folder,) = opened.jobs()
        finally:
            opened.close()
        return cls(folder)

    def recover(self) -> Recovered:
        """The job as a server would have it after its start; changes no file."""
        return recover(self.folder, Compute(choose("auto"), processors()))

    def newest_snapshot(self) -> list[Path]:
        """The files of the newest snapshot."""
        return sorted(max(self.folder.snapshots.glob("0*")).iterdir())


def weights(recovered: Recovered) -> np.ndarray:
    """All weights, in an array of its own."""
    return np.concatenate(recovered.state.weights.buffers.arrays[0])
