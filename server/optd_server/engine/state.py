"""`JobState`: all of a job that survives a restart of its server. Only `apply` changes it.

What is not here is a cache, a connection, a clock or memory that is ready to be written to.
"""

from dataclasses import dataclass, field, replace

from optd_server.engine.membership.members import Members
from optd_server.engine.options.groups import Groups
from optd_server.engine.options.history import OptionHistory
from optd_server.engine.step.accumulation import Accumulation
from optd_server.engine.step.averages import Averages
from optd_server.optim.iterative import Searches
from optd_server.store.versions import WeightSet
from optd_wire.values import GradientSummary, JobOptions, JobVersion, Policy


@dataclass(slots=True, eq=False, kw_only=True)
class JobState:
    """A job at one version."""

    name: str
    id: str
    """Tells the job from jobs that had its name before."""
    created_wall: float
    """In seconds since the epoch."""
    created_with: int
    """How many groups the job was created with."""
    ephemeral: bool
    """Whether the job ends with its workers."""
    policy: Policy

    version: int = 0
    """How many steps have been applied."""
    revision: int = 0
    """How many changes there have been that are not steps: of options, groups, weights."""
    stepped_wall: float = 0.0
    """When the last step was made, in seconds since the epoch; 0 before the first one."""
    written_revision: int = 0
    """The revision at which a worker wrote weights last."""
    applied_pushes: int = 0
    """How many gradients have become part of a step, or are added up for one."""

    groups: Groups
    """Layouts, options with their revisions, optimizer state and steps of every parameter."""
    weights: WeightSet
    averages: Averages
    accumulation: Accumulation = field(default_factory=Accumulation)
    """Rounds that are added up for the next step."""
    search: Searches = field(default_factory=Searches)
    """The step of an iterative algorithm that is under way."""

    options: JobOptions
    """Of the job as a whole."""
    history: OptionHistory = field(default_factory=OptionHistory)
    gradients: GradientSummary = field(default_factory=GradientSummary)
    """Counts of clipped and skipped steps, and of entries that were not finite."""
    members: Members = field(default_factory=Members)
    """Epochs of workers, and the mark of each one's last push with its reply."""

    @property
    def job_version(self) -> JobVersion:
        """Where the job stands; which version is durable, the job says as a reply leaves."""
        return JobVersion(self.version, 0, self.revision)

    def copy(self) -> "JobState":
        """An equal state: no event of this one changes it. Blocks, for as long as its numbers take to copy."""
        return replace(
            self,
            groups=self.groups.copy(),
            weights=WeightSet.holding(self.weights.buffers.copy()),
            averages=self.averages.copy(),
            accumulation=self.accumulation.copy(),
            search=Searches(self.search.state),
            history=self.history.copy(),
            members=self.members.copy(),
        )

    def release_all(self) -> None:
        """Lets go of all memory but that of the weights: the job exists no more."""
        self.groups.release_all()
        self.averages.release_all()
        self.accumulation.release_all()
        self.search.release()
