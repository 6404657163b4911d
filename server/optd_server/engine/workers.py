"""Joining, leaving and expiry of workers, and everything that ends with a lease."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from optd_server.engine import chronicle
from optd_server.engine.apply import Applied
from optd_server.engine.clock import Clock
from optd_server.engine.events import Expired, Joined, Left
from optd_server.engine.fold import Fold
from optd_server.engine.membership.activity import UNKNOWN, Process
from optd_server.engine.membership.leases import Leases
from optd_server.engine.membership.members import LEFT as HAS_LEFT
from optd_server.engine.membership.members import Member
from optd_server.engine.options.registration import LISTED
from optd_server.engine.rounds.in_flight import InFlight
from optd_server.engine.sharing import Sharing
from optd_server.engine.writer import Writer
from optd_wire.errors import JobInUse, UnknownJob
from optd_wire.values import EXPIRED, LEFT, REPLACED, WorkerInfo


@dataclass(slots=True)
class Workers:
    """The workers of one job. Lives on one event loop."""

    fold: Fold
    leases: Leases
    pushes: InFlight
    sharing: Sharing
    writer: Writer
    clock: Clock
    idle_since: float | None = None
    """Since when no worker has held a lease, as far as `expire` has seen."""
    returning: set[str] = field(default_factory=set)
    """The workers that have left and mean to come back, if they have been seen by this server."""

    @property
    def active(self) -> int:
        """How many workers hold a lease."""
        return self.leases.active

    def infos(self) -> tuple[WorkerInfo, ...]:
        """Describe all workers that have joined, in the order of their names."""
        return self._described(sorted(self.fold.state.members, key=lambda member: member.name))

    def infos_of(self, names: Iterable[str]) -> tuple[WorkerInfo, ...]:
        """Describe these workers; names that the job does not know are left out."""
        found = map(self.fold.state.members.find, names)
        return self._described(member for member in found if member is not None)

    def _described(self, members: Iterable[Member]) -> tuple[WorkerInfo, ...]:
        now = self.clock.monotonic()
        since = {push.header.worker: push.wall for push in self.pushes.waiting.pushes}
        return tuple(self.leases.info(member, now, since.get(member.name)) for member in members)

    def check(self, name: str, epoch: int, process: Process = UNKNOWN) -> Member:
        """Renew a worker's lease; raise `UnknownWorker` or `StaleEpoch`."""
        member = self.leases.check(name, epoch, self.clock.monotonic())
        activity = self.leases.of(name).activity
        if process != UNKNOWN and activity.process == UNKNOWN:  # the server was restarted since it joined
            activity.process = process
        return member

    def check_free_for(self, worker: str) -> None:
        """Raise `JobInUse` while workers other than `worker` hold a lease."""
        others = sorted(name for name in self.leases.holders() if name != worker)
        if others:
            now = self.clock.monotonic()
            left = max(self.leases.seconds_left(name, now) for name in others)
            raise JobInUse(job=self.fold.state.name, workers=", ".join(others[:LISTED]), seconds=f"{left:.0f}")

    def renew(self, name: str, epoch: int) -> None:
        """Renew a lease because a message of the worker has arrived."""
        self.leases.renew(name, epoch, self.clock.monotonic())

    async def join(
        self,
        name: str,
        check: Callable[[], None],
        process: Process = UNKNOWN,
        *,
        resumes_epoch: int = 0,
        session_id: str = "",
    ) -> Member:
        """Admit a worker under a new epoch; raise what `check` raises. `process` is what the worker says of itself.

        Raise `StaleEpoch` if it had the epoch `resumes_epoch` (0: none), and another session has joined under its name
        since.

        This happens between two steps, so a push of the old epoch has been applied by then, or never will be.
        """

        async def action() -> Member:
            check()
            members = self.fold.state.members
            if resumes_epoch:
                members.check_unclaimed(name, self.fold.state.name, resumes_epoch, session_id)
            before = members.find(name)
            is_same = before is None or (session_id != "" and before.session_id == session_id)
            await self.fold.take(Joined(name, members.next_epoch(name), session_id))
            # Not sooner: while the log takes the event, the old epoch may still announce a push.
            self.pushes.withdraw(name, "its worker joined again" if is_same else "another process joined as its worker")
            self.sharing.close(name)
            self._begin(name, process)
            self.idle_since = None
            self.returning.discard(name)
            self.pushes.waiting.joined(name)
            return replace(members.by_name[name])  # as it is now: others may join before the caller goes on

        member = await self.writer.run(action)
        await self.fold.durable()
        return member

    def _begin(self, name: str, process: Process) -> None:
        activity, wall = self.leases.of(name).activity, self.clock.wall()
        before = activity.process
        held, is_same = self.leases.holds(name), process == before != UNKNOWN
        if held and not is_same:
            activity.end(REPLACED, wall)
        activity.join(process, wall)
        self.leases.begin(name, self.clock.monotonic())
        chronicle.joined(self.fold.state, name, process, before if held else None)

    def resume(self) -> None:
        """Grant a lease to each worker that had one when the server ended: it cannot know of the restart."""
        for member in self.fold.state.members:
            if member.active:
                self.leases.begin(member.name, self.clock.monotonic())
                self.pushes.waiting.resumed(member.name)
        # An ephemeral job that nobody comes back to ends after its time.
        self.idle_since = None

    def leave(self, name: str, epoch: int, *, returns: bool = False) -> Awaitable[None]:
        """End a worker's lease at once; raise `UnknownWorker` or `StaleEpoch`. `returns`: it means to come back.

        The returned awaitable finishes when the end of the lease is as durable as the log makes it. That is at once if
        the log keeps nothing; otherwise a step that is running comes first.
        """
        self.check(name, epoch)
        self._end(name, LEFT, HAS_LEFT, "its worker left")
        if returns:
            self.returning = {name, *(each for each in self.returning if each in self.fold.state.members.by_name)}
        chronicle.left(self.fold.state, name, self.leases.of(name).activity.process)
        self.pushes.waiting.left(name)
        left = self.writer.submit(lambda: self.fold.take(Left(name, epoch)))
        return self._noted(left)

    async def _noted(self, event: Awaitable[Applied]) -> None:
        if not self.fold.keeps_events:
            return
        try:
            await asyncio.shield(event)
        except UnknownJob:
            return  # the job was deleted meanwhile, and all leases with it
        await self.fold.durable()

    def expire(self) -> None:
        """End the leases that have run out. The job's state records that through the writer, after this returns."""
        now = self.clock.monotonic()
        for name in self.leases.expired(now):
            event = Expired(name, self.fold.state.members.by_name[name].epoch, self.leases.expiry)
            self._end(name, EXPIRED, event.why, "its worker's lease ran out")
            chronicle.expired(self.fold.state, name, self.leases.of(name).activity.process, event.why)
            self.pushes.waiting.expired(name)
            self.writer.submit(lambda event=event: self.fold.take(event))  # type: ignore[misc]
        if self.leases.active:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now

    def _end(self, name: str, how: str, why: str, of_push: str) -> None:
        self.pushes.withdraw(name, of_push)
        self.sharing.close(name)
        self.leases.end(name, why)
        self.leases.of(name).activity.end(how, self.clock.wall())
        self.fold.notify()

    def idle_seconds(self) -> float:
        """Return how long no worker has held a lease, as far as `expire` has seen."""
        return 0.0 if self.idle_since is None else self.clock.monotonic() - self.idle_since
