"""How much memory a job may come to take, and the account of all jobs against the server's limit.

Memory is planned when a job is created or changed, not found out when it is touched: a job that would not fit is
refused whole, and no push can take the server down.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from optd_server.engine.policies.base import PolicyRule
from optd_server.store.flat import bytes_of
from optd_wire.errors import MemoryExceeded
from optd_wire.layout import GroupLayout

# The current weights, the next ones, and one version that is still being read.
SNAPSHOTS = 3


def job_bytes(rule: PolicyRule, layouts: Sequence[GroupLayout], states: Sequence[int]) -> int:
    """Bytes of the weights' snapshots, the gradients that the policy keeps and that of the last step, and the state.

    `states` tells how many arrays of state each group has.
    """
    fixed = bytes_of(layouts) * (SNAPSHOTS + rule.slots + 1)
    return fixed + sum(bytes_of([layout]) * count for layout, count in zip(layouts, states, strict=True))


class Memory:
    """What is planned for each job, within the server's limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._planned: dict[str, int] = {}
        self._loans = count()

    @property
    def planned(self) -> int:
        """Bytes planned for all jobs."""
        return sum(self._planned.values())

    def of(self, job: str) -> int:
        """Bytes planned for one job."""
        return self._planned.get(job, 0)

    def check(self, job: str, needed: int) -> None:
        """Raises `MemoryExceeded` unless the job's plan may come to `needed` bytes in all."""
        free = self.limit - self.planned + self.of(job)
        if needed > free:
            raise MemoryExceeded(what=repr(job), needed=needed, free=free, limit=self.limit)

    def reserve(self, job: str, needed: int) -> None:
        """Plans `needed` bytes in all for a job; raises `MemoryExceeded` and leaves its plan as it was."""
        self.check(job, needed)
        self._planned[job] = needed

    @contextmanager
    def lend(self, what: str, needed: int) -> Iterator[None]:
        """Plans `needed` bytes for as long as the block runs; raises `MemoryExceeded`."""
        key = f"{what} #{next(self._loans)}"
        self.reserve(key, needed)
        try:
            yield
        finally:
            self.release(key)

    def release(self, job: str) -> None:
        """Ends a job's plan."""
        self._planned.pop(job, None)
