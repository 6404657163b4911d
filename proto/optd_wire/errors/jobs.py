"""Errors about jobs, groups and parameters: how they are declared, and which ones exist."""

from optd_wire.errors.base import Code, Conflict, InvalidArgument, NotFound


class InvalidName(InvalidArgument):
    """A name is empty, too long, or has characters that names may not have."""

    reason = "INVALID_NAME"
    template = "{kind} name {name} must be {rule}"


class DuplicateName(InvalidArgument):
    """Two groups of a job, or two of its parameters, have the same name."""

    reason = "DUPLICATE_NAME"
    template = "{kind} name {name!r} is used twice in job {job!r}"


class DuplicateParameter(InvalidArgument):
    """A group has the same array twice."""

    reason = "DUPLICATE_PARAMETER"
    template = "group {group!r} has one array twice, as {first!r} and as {second!r}"


class SharedParameters(InvalidArgument):
    """Two parameters share memory, so each would overwrite the weights of the other."""

    reason = "SHARED_PARAMETERS"
    template = (
        "parameters {first!r} and {second!r} lie in the same memory, where each would overwrite the other's weights; "
        "pass only one of them (if the weights are tied, let the modules share one parameter)"
    )


class ParameterInTwoGroups(InvalidArgument):
    """A parameter is in two groups; it may be in one only."""

    reason = "PARAMETER_IN_TWO_GROUPS"
    template = "parameter {parameter!r} is in group {first!r} and in group {second!r}; remove it from one of them"


class EmptyGroup(InvalidArgument):
    """A group, or a job, has no parameters."""

    reason = "EMPTY_GROUP"
    template = "{what} has no parameters"


class InvalidShape(InvalidArgument):
    """A parameter has too many dimensions or too many elements."""

    reason = "INVALID_SHAPE"
    template = (
        "parameter {parameter!r}: shape {shape} must have at most {max_dims} dimensions and {max_elements} elements"
    )


class UnservedShape(InvalidArgument):
    """The algorithm cannot step a parameter of this shape."""

    reason = "UNSERVED_SHAPE"
    template = "{algorithm}: parameter {parameter!r} must {problem}, got shape {shape}"


class UnservedGroups(InvalidArgument):
    """The algorithm treats all parameters as one vector, so it takes one group of one dtype."""

    reason = "UNSERVED_GROUPS"
    template = "{algorithm} takes one group, of parameters of one dtype; got {got}"


class InvalidPolicy(InvalidArgument):
    """A value of the policy is out of range."""

    reason = "INVALID_POLICY"
    template = "policy {policy}: {problem}"


class UnknownJob(NotFound):
    """The server has no job of this name."""

    reason = "UNKNOWN_JOB"
    template = "no job {job!r} on this server"


class JobLost(NotFound):
    """The server was restarted without the job that this session had joined. The session itself raises it."""

    reason = "JOB_LOST"
    template = (
        "the server at {address} was restarted without job {job!r}, which worker {worker!r} had joined: start it with "
        "--data-dir, which makes it keep jobs{advice}"
    )


class UnknownGroup(NotFound):
    """The job has no group of this name."""

    reason = "UNKNOWN_GROUP"
    template = "job {job!r} has no group {group!r}; its groups are {groups}"


class UnknownParameter(NotFound):
    """The job, group or optimizer has no parameter of this name."""

    reason = "UNKNOWN_PARAMETER"
    template = "{where} has no parameter {parameter!r}"


class JobExists(Conflict):
    """A job of this name exists, or is being created."""

    code = Code.ALREADY_EXISTS
    reason = "JOB_EXISTS"
    template = "job {job!r} {how}"


class JobReplaced(Conflict):
    """A worker that joins again finds a different job under the same name."""

    reason = "JOB_REPLACED"
    template = (
        "job {job!r} was deleted and created again after worker {worker!r} joined it; construct a new optimizer to "
        "join the new job"
    )


class JobInUse(Conflict):
    """The job cannot be replaced, because other workers hold leases."""

    reason = "JOB_IN_USE"
    template = (
        "job {job!r} cannot be replaced: other workers hold a lease there ({workers}); stop them, or wait {seconds} s "
        "if they have crashed, or delete the job with optd.delete_job() or optctl delete"
    )


class JobMismatch(Conflict):
    """The registration of a worker that attaches differs from the job's."""

    reason = "JOB_MISMATCH"
    template = (
        "job {job!r} has {aspect} {theirs}, this registration has {ours}; "
        "register the same, or take another job (job=, OPTD_JOB)"
    )


class NothingDurable(Conflict):
    """The call asks for durability, and the server keeps nothing on disk."""

    reason = "NOTHING_DURABLE"
    template = "the server keeps no job on disk, so nothing becomes durable: start it with --data-dir"


class JobFailed(Conflict):
    """A step failed half-way. If the server has the job on its disk, the job goes back to its last version there."""

    reason = "JOB_FAILED"
    template = "job {job!r} failed in the step after version {version}: {problem}; {outcome}"
