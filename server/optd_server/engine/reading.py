"""One version of a job's weights, held for a reader."""

from dataclasses import dataclass

from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot that does not change while it is read."""

    job: int
    """The serial number of the job, unique in this process."""
    snapshot: Snapshot
    snapshots: Snapshots

    @property
    def is_in_the_way(self) -> bool:
        """Whether a step is waiting for memory that readers hold."""
        return self.snapshots.wanted
