"""Errors about reading and writing weights, state and averages."""

from optd_wire.errors.base import Conflict, InvalidArgument


class UnknownField(InvalidArgument):
    """The job's algorithm keeps no state of this name."""

    reason = "UNKNOWN_FIELD"
    template = "job {job!r} keeps no {field!r}; it keeps {fields}"


class UnknownAverage(InvalidArgument):
    """The job keeps no average of this name."""

    reason = "UNKNOWN_AVERAGE"
    template = "job {job!r} keeps no average {average!r} of its weights; it keeps {averages}"


class EmptyAverage(Conflict):
    """The average is empty, because no version of the weights has entered it yet."""

    reason = "EMPTY_AVERAGE"
    template = "no version of the weights of job {job!r} has entered its average {average!r} yet"


class OtherWorkers(Conflict):
    """The write asks that its worker be alone, and other workers hold leases."""

    reason = "OTHER_WORKERS"
    template = (
        "worker {worker!r} may write weights of job {job!r} only while it is alone, but workers {others} hold leases: "
        "stop them first"
    )


class WeightsMovedOn(Conflict):
    """The write replaces certain weights, and they are no longer the current ones."""

    reason = "WEIGHTS_MOVED_ON"
    template = (
        "worker {worker!r} would replace the weights of version {base} of job {job!r}, but they are now {now}; pull "
        "first, or write without if_alone_at to undo what has happened since"
    )
