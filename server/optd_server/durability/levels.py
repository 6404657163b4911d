"""What the operator has chosen to keep, and how well."""

from dataclasses import dataclass

SNAPSHOT, LOG = "snapshot", "log"
COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class Levels:
    """The settings of a data directory."""

    durability: str = SNAPSHOT
    fsync: str = "interval"
    fsync_interval_seconds: float = 1.0
    snapshot_seconds: float = 60.0
    snapshot_versions: int = 0
    """A snapshot is due after this many versions; 0: only time counts."""
    keep_snapshots: int = 3
