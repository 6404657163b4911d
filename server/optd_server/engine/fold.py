"""The only way in which a job changes: an event is appended to the log, applied, and published."""

import logging
from collections.abc import Callable
from copy import copy

from optd_server.engine.apply import Applied, applying
from optd_server.engine.compute import Compute
from optd_server.engine.events import Deleted, Event, Expired, Joined, Left, Stepped
from optd_server.engine.log import Log
from optd_server.engine.offload import Offload
from optd_server.engine.state import JobState
from optd_server.store.snapshots import Snapshots
from optd_server.store.versions import Snapshot
from optd_wire.errors import JobFailed, JobReloads

logger = logging.getLogger(__name__)

STILL_TAKEN = (Joined, Left, Expired, Deleted)
"""The kinds of events that a failed job takes: its workers may come to read its weights, and it may be deleted."""
STAYS = "it can still be read, but takes no more steps"


class Fold:
    """Takes the events of one job. Only actions of the job's writer call it, so it takes one event at a time."""

    def __init__(self, state: JobState, snapshots: Snapshots, log: Log, position: int, offload: Offload) -> None:
        self.state = state
        self.snapshots = snapshots
        self.position = position
        """The position of the last event in the log."""
        self._log = log
        self._offload = offload
        self._failure: JobFailed | None = None
        self._watchers: set[Callable[[], None]] = set()

    @property
    def keeps_events(self) -> bool:
        """Whether the log keeps events; see `Log.keeps_events`."""
        return self._log.keeps_events

    @property
    def failure(self) -> str:
        """Why the job has failed; empty if it has not."""
        return "" if self._failure is None else str(self._failure)

    def check_not_failed(self) -> None:
        """Raise `JobFailed` if applying an event has failed half-way: no later step would be correct.

        Raise `JobReloads` instead if the job is about to go back to its last version.
        """
        if self._failure is not None:
            if self._log.brings_back:
                raise JobReloads(job=self.state.name)
            # Raises a new error each time: one that is raised repeatedly would collect all tracebacks.
            raise copy(self._failure)

    def fail(self, problem: Exception) -> JobFailed:
        """Fail the job, whose state may be half-changed; return the error to raise."""
        state = self.state
        logger.error("job %s failed after version %d", state.name, state.version, exc_info=problem)
        outcome = "it goes back to what its disk has, and on from there" if self._log.brings_back else STAYS
        self._failure = JobFailed(job=state.name, version=state.version, problem=repr(problem)[:200], outcome=outcome)
        self._log.note_failed()
        self.notify()
        return copy(self._failure)

    def compute(self) -> Compute:
        """Return the resources that the next event computes with."""
        return Compute(self._offload.kernels, self._offload.threads)

    async def take(self, event: Event, compute: Compute | None = None) -> Applied:
        """Append an event to the log, apply it, and publish the new snapshot.

        Raise `DiskFull` if the log has no room, and change nothing then; `JobFailed` if the event cannot be applied.
        After that the job takes only events about its workers, and its deletion.
        """
        if type(event) not in STILL_TAKEN:
            self.check_not_failed()
        state = self.state
        version, revision, weights = state.version, state.revision, state.weights
        self.position = await self._log.append(event, version + (type(event) is Stepped), state)
        try:
            applied = await self._applied(event, self.compute() if compute is None else compute)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it ends the steps of this job, and is logged
            self._log.take_back(version)
            raise self.fail(problem) from None
        if state.version != version or state.revision != revision or state.weights is not weights:
            self.snapshots.publish(snapshot_of(state, self.snapshots.current), applied.changes)
        self.notify()
        return applied

    async def _applied(self, event: Event, compute: Compute) -> Applied:
        steps = applying(self.state, event, compute)
        while True:
            try:
                work = next(steps)
            except StopIteration as end:
                found: Applied = end.value
                return found
            if self._offload.is_little(work.elements):
                work.run()
            else:
                await self._offload.run(work.elements, work.run)

    async def durable(self) -> None:
        """Wait until all events so far have the durability that the operator chose. Called outside the writer."""
        await self._log.wait(self.position)

    def watch(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` after each change, until the returned function is called."""
        self._watchers.add(notify)
        return lambda: self._watchers.discard(notify)

    def notify(self) -> None:
        """Tell the watchers that something has changed."""
        if self._watchers:
            for watcher in tuple(self._watchers):
                watcher()


def snapshot_of(state: JobState, before: Snapshot | None = None) -> Snapshot:
    """Return the snapshot of a state that readers see. Reuse unchanged parts of the snapshot before it."""
    groups = state.groups
    effective = groups.in_force.effective(state.version)
    if before is not None and before.version.revision == state.revision:
        layouts, options = before.layouts, before.options
        in_force = before.effective if not groups.in_force.is_scheduled else tuple(effective)
    else:
        layouts, options, in_force = tuple(groups.layouts), tuple(groups.options), tuple(effective)
    steps, averages = groups.step_ranges(), state.averages.infos()
    return Snapshot(state.job_version, layouts, options, state.weights, steps, in_force, state.options, averages)
