"""One version of a job's weights, as a reader has it."""

from dataclasses import dataclass

from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot that stays as it is while it is read."""

    job: int
    """Tells the job from all others that this process has had."""
    snapshot: Snapshot
    snapshots: Snapshots

    @property
    def is_in_the_way(self) -> bool:
        """Whether a step waits for the memory of readers."""
        return self.snapshots.wanted
