"""`JobState`: everything about a job that survives a restart of its server. Only `apply` changes it.

Whatever is kept elsewhere is a cache, a connection, a clock, or spare memory.
"""

from dataclasses import dataclass, field, replace

from optd_server.engine.membership.members import Members
from optd_server.engine.options.groups import Groups
from optd_server.engine.options.history import OptionHistory
from optd_server.engine.progress import BEGINNING, Position
from optd_server.engine.step.accumulation import Accumulation
from optd_server.engine.step.averages import Averages
from optd_server.engine.step.staleness import FragmentSteps
from optd_server.optim.iterative import Searches
from optd_server.store.versions import WeightSet
from optd_wire.values import GradientSummary, JobOptions, JobVersion, Policy


@dataclass(slots=True, eq=False, kw_only=True)
class JobState:
    """A job at one version."""

    name: str
    id: str
    """Tells the job from earlier jobs of the same name."""
    created_wall: float
    """In seconds since the Unix epoch."""
    created_with: int
    """How many groups the job was created with."""
    ephemeral: bool
    """Whether the job ends with its workers."""
    policy: Policy
    first_policy: Policy
    """The policy that it was created with. Workers that name this one may join even if it has another one now."""

    version: int = 0
    """How many steps have been applied."""
    revision: int = 0
    """How many changes other than steps have been applied: to options, groups, weights or state."""
    stepped_wall: float = 0.0
    """When the last step was taken, in seconds since the Unix epoch; 0 before the first one."""
    written_revision: int = 0
    """The revision at which a worker last wrote weights."""
    applied_pushes: int = 0
    """How many pushed gradients have become part of a step, or are accumulated for one."""

    groups: Groups
    """Layouts, options with their revisions, optimizer state and steps of every parameter."""
    weights: WeightSet
    averages: Averages
    accumulation: Accumulation = field(default_factory=Accumulation)
    """The rounds that are added up for the next step."""
    search: Searches = field(default_factory=Searches)
    """The unfinished step of an iterative algorithm, if there is one."""

    fragments: FragmentSteps = field(default_factory=FragmentSteps)
    """If parts of the model are pushed in turns: the versions of their last steps."""

    options: JobOptions
    """The options of the job as a whole."""
    history: OptionHistory = field(default_factory=OptionHistory)
    gradients: GradientSummary = field(default_factory=GradientSummary)
    """Counts of clipped and skipped steps, and of entries that were not finite."""
    members: Members = field(default_factory=Members)
    """The epoch of each worker, and the mark of its last push with the reply."""

    @property
    def job_version(self) -> JobVersion:
        """The job's version and revision. `Job.stamped` adds the durable version when a reply leaves."""
        return JobVersion(self.version, 0, self.revision)

    @property
    def position(self) -> Position:
        """Where the job is."""
        return Position(self.version, self.accumulation.count)

    def copy(self) -> "JobState":
        """Return an equal state that no event of this one changes. Block while the numbers are copied."""
        return replace(self.captured(), weights=WeightSet.holding(self.weights.buffers.copy()))

    def captured(self, spare: Groups | None = None) -> "JobState":
        """Do the same as `copy`, but with the same weights, which the caller must hold. Blocks.

        `spare` are the groups of an earlier copy that nobody needs any more; see `Groups.copy`.
        """
        return replace(
            self,
            groups=self.groups.copy(spare),
            averages=self.averages.copy(),
            accumulation=self.accumulation.copy(),
            search=Searches(self.search.state),
            history=self.history.copy(),
            members=self.members.copy(),
            fragments=self.fragments.copy(),
        )

    def release_all(self) -> None:
        """Release all memory of a deleted job, except that of the weights."""
        self.groups.release_all()
        self.averages.release_all()
        self.accumulation.release_all()
        self.search.release()


@dataclass(frozen=True, slots=True)
class StateProgress:
    """The progress of a job, for its policy: a view of the state."""

    state: JobState

    def at(self, fragment: int) -> Position:
        """Return the end of the last round of a fragment; 0: of the job."""
        return Position(self.state.fragments.last_of(fragment)) if fragment else self.state.position

    def last_round(self, worker: str, fragment: int) -> Position:
        """Return the end of the last round of a fragment that a worker was in, as far as its session knows."""
        member = self.state.members.find(worker)
        return BEGINNING if member is None else member.last_rounds.get(fragment, BEGINNING)

    def joined(self, worker: str) -> Position:
        """Return where the job was when a worker joined."""
        member = self.state.members.find(worker)
        return BEGINNING if member is None else member.joined
