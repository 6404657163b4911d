"""Errors about pushes: the gradients in them, their order, and the step that they belong to."""

from optd_wire.errors.base import Code, Conflict, InvalidArgument, Unavailable


class LossMissing(InvalidArgument):
    """The algorithm needs the loss, and the push has none."""

    reason = "LOSS_MISSING"
    template = "{algorithm} needs the loss with its gradients, as often as it asks for them: call step(closure)"


class NonfiniteGradient(InvalidArgument):
    """A gradient has a NaN or an infinite element."""

    reason = "NONFINITE_GRADIENT"
    template = "gradient of parameter {parameter!r} has {value} at flat index {index}; the push was refused"


class RowsNotTaken(InvalidArgument):
    """The algorithm takes no sparse gradients."""

    reason = "ROWS_NOT_TAKEN"
    template = "{algorithm} takes no sparse gradients, and got rows of parameter {parameter!r}; {takers} take them"


class RowsOnly(InvalidArgument):
    """The algorithm takes sparse gradients only."""

    reason = "ROWS_ONLY"
    template = (
        "{algorithm} takes no dense gradients, and got one of parameter {parameter!r}; send its rows, or take adam"
    )


class RowsNeedZero(InvalidArgument):
    """An option must be 0 for sparse gradients."""

    reason = "ROWS_NEED_ZERO"
    template = (
        "{algorithm}: {option} must be 0 for sparse gradients, and got rows of parameter {parameter!r} with {value}"
    )


class SequenceGap(Conflict):
    """A push skips a sequence number, or repeats one that is older than the last."""

    reason = "SEQUENCE_GAP"
    template = "worker {worker!r} pushes sequence {sequence}; its last one was {last}, so the next is {expected}"


class FutureVersion(Conflict):
    """The gradient of a push is from a version that the job has not reached."""

    reason = "FUTURE_VERSION"
    template = (
        "worker {worker!r} pushes a gradient of version {base_version} of job {job!r}, which is at version {version}; "
        "pull() and compute the gradient again"
    )


class PushPending(Conflict):
    """Another push of the worker is waiting for its step."""

    reason = "PUSH_PENDING"
    template = "worker {worker!r} has a push with sequence {sequence} that waits for its step; wait for its reply"


class PushWithdrawn(Conflict):
    """A push was withdrawn while it waited for its step: its worker left, joined again, or lost its lease."""

    code = Code.ABORTED
    reason = "PUSH_WITHDRAWN"
    template = "the push of worker {worker!r} with sequence {sequence} was withdrawn before its step: {why}"


class StaleEvaluation(Conflict):
    """The algorithm needs loss and gradients at certain weights, and the push has those at other weights."""

    code = Code.ABORTED
    reason = "STALE_EVALUATION"
    template = (
        "{algorithm} asks about the weights of version {version} of job {job!r}, and worker {worker!r} has evaluated "
        "those {evaluated}; pull() and step again (several workers share a step under policy sync)"
    )


class StaleGradient(Conflict):
    """The gradient of a push is older than the policy allows."""

    code = Code.ABORTED
    reason = "STALE_GRADIENT"
    template = (
        "worker {worker!r} pushes a gradient of version {base_version} of job {job!r}, which is at version {version}: "
        "its staleness must be at most {most}, and is {staleness}; pull() and compute the gradient again"
    )


class RoundClosed(Conflict):
    """A push came too late: its round has closed without it. It counts in no round; its worker pulls and goes on."""

    code = Code.ABORTED
    reason = "ROUND_CLOSED"
    template = (
        "worker {worker!r} pushes a gradient of version {base_version} of job {job!r}, but {how}; the job is at "
        "version {version}: pull() and go on"
    )


class WorkerLost(Conflict):
    """A round failed, because one of its workers has gone and the policy says `on_death="fail"`."""

    code = Code.ABORTED
    reason = "WORKER_LOST"
    template = (
        "job {job!r} made no step of the push of worker {worker!r}, because worker {lost!r} {how} (the policy says "
        "on_death='fail'); push again to wait for a worker that takes its place"
    )


class OtherPayload(Conflict):
    """A push has the number of an earlier one, and another content."""

    reason = "OTHER_PAYLOAD"
    template = (
        "worker {worker!r} of job {job!r} pushes sequence {sequence} again, but with another content than the first "
        "time; the push after it has sequence {expected}"
    )


class RoundBroken(Unavailable):
    """The server had no memory for a round, or options changed meanwhile. Send this push again."""

    reason = "ROUND_BROKEN"
    template = "job {job!r} made no step of this push, because its round failed ({why}); push again"
