"""Edits a running job between two steps: its options, its groups and its policy."""

from dataclasses import dataclass

from optd_server.engine import chronicle, decide
from optd_server.engine.clock import Clock
from optd_server.engine.events import GroupAdded, OptionsChanged, PolicyChanged
from optd_server.engine.fold import Fold
from optd_server.engine.membership.leases import Leases
from optd_server.engine.options.by_name import check_matches
from optd_server.engine.options.history import Origin, policy_change
from optd_server.engine.options.registration import check_group, check_options, check_same_group, check_together
from optd_server.engine.options.resolution import algorithm_of
from optd_server.engine.planning import JobMemory
from optd_server.engine.prefaulting import Prefaulting
from optd_server.engine.rounds.in_flight import InFlight
from optd_server.engine.rounds.policies.registry import decider_of
from optd_server.engine.state import JobState, StateProgress
from optd_server.engine.writer import Writer
from optd_server.store.flat import FlatBuffers
from optd_server.store.gradients import Slots
from optd_wire.errors import JobMismatch
from optd_wire.values import GroupInfo, GroupOptions, GroupSpec, GroupUpdate, JobOptions, JobUpdate, JobVersion, Policy


@dataclass(slots=True)
class JobEditor:
    """Edits one job between two steps. Lives on one event loop."""

    fold: Fold
    leases: Leases
    pushes: InFlight
    slots: Slots
    memory: JobMemory
    prefaulting: Prefaulting
    writer: Writer
    clock: Clock

    @property
    def _state(self) -> JobState:
        return self.fold.state

    async def update_group(self, update: GroupUpdate) -> tuple[GroupOptions, JobVersion]:
        """Change options of a group from the next step on; raise the problem of one."""
        origin = Origin(self.clock.wall())

        async def action() -> tuple[GroupOptions, JobVersion]:
            state, groups = self._state, self._state.groups
            edits = decide.group_edits(state, [(update, origin)])
            if edits:
                with self.memory.with_options(edits):
                    await self.fold.take(OptionsChanged(edits))
            return groups.options[groups.index(update.group, state.name)], state.job_version

        found = await self.writer.run(action)
        await self.fold.durable()
        return found

    async def update_job(self, update: JobUpdate) -> tuple[JobOptions, JobVersion]:
        """Change options of the job as a whole from the next step on; raise the problem of one.

        If the change makes the step of the accumulated rounds due, that step is taken at once.
        """
        origin = Origin(self.clock.wall())

        async def action() -> tuple[JobOptions, JobVersion]:
            version = self._state.version
            await self.pushes.committer.update(update, origin)
            if self._state.version > version:
                self.pushes.waiting.stepped()
            return self._state.options, self._state.job_version

        found = await self.writer.run(action)
        await self.fold.durable()
        return found

    async def set_policy(self, policy: Policy) -> tuple[Policy, JobVersion]:
        """Replace the policy, and return it. The new one also decides about the pushes that are waiting now.

        Raise `InvalidPolicy` or `MemoryExceeded`.
        """

        async def action() -> tuple[Policy, JobVersion]:
            before = self._state.policy
            if policy == before:
                return policy, self._state.job_version  # a repeated call must not end the open round's grace window
            decider = decider_of(policy, StateProgress(self._state))
            with self.memory.with_policy(decider):
                change = policy_change(before, policy, self._state.version, self.clock.wall())
                await self.fold.take(PolicyChanged(policy, (change,)))
            chronicle.policy_changed(self._state, change)
            self.slots.allow(decider.slots)
            self.pushes.exchange(decider, self.leases.holders())
            return policy, self._state.job_version

        found = await self.writer.run(action)
        await self.fold.durable()
        return found

    def existing_group(self, spec: GroupSpec) -> GroupInfo | None:
        """Return the group that `spec` adds if the job already has it; raise `JobMismatch` if it differs."""
        for info in self._state.groups.infos():
            if info.options.group == spec.name:
                check_same_group(spec, self._state.name, self._state.groups.algorithm.name, info)
                return info
        return None

    def check_new_group(self, spec: GroupSpec) -> int:
        """Check a group that is to be added, and return the index that it would have; raise its first problem."""
        groups = self._state.groups
        own = algorithm_of(spec, groups.algorithm)
        check_together([*groups.distinct_algorithms, own], [*groups.names, spec.name])
        check_group(spec, self._state.name, own, groups.holders())
        check_matches([check_options(spec, groups.algorithm, groups.defaults)], groups.in_force.matches())
        self.memory.check_group(spec)
        return len(groups)

    async def add_group(self, spec: GroupSpec, weights: FlatBuffers, index: int) -> tuple[GroupInfo, bool]:
        """Add a group with its weights; return the group, and whether it is new.

        Raise `JobMismatch` if the group would no longer get `index`, the index that its frames were addressed to.
        """

        async def action() -> tuple[GroupInfo, bool]:
            existing = self.existing_group(spec)
            if existing is not None:
                return existing, False
            count = self.check_new_group(spec)
            if count != index:
                raise JobMismatch(job=self._state.name, aspect="the number of groups", theirs=count, ours=index)
            compute = self.fold.compute()
            with self.memory.with_group(spec):
                compute.copies = self._state.averages.copies(weights)
                placed = self.fold.snapshots.placed(weights)
                await self.fold.take(GroupAdded(spec, placed), compute)
            self.prefaulting.prepare_state()
            return self._state.groups.info(index), True

        found = await self.writer.run(action)
        await self.fold.durable()
        return found
