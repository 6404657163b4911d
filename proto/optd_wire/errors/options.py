"""Errors about algorithms, their options, and rules for names."""

from optd_wire.errors.base import Code, Conflict, InvalidArgument


class UnknownAlgorithm(InvalidArgument):
    """The server has no algorithm of this name."""

    reason = "UNKNOWN_ALGORITHM"
    template = "no algorithm {algorithm!r}; {advice}"


class UnknownOption(InvalidArgument):
    """The algorithm has no option of this name."""

    reason = "UNKNOWN_OPTION"
    template = "{algorithm}: no option {option!r}; {advice} options are {options}"


class OptionOutOfRange(InvalidArgument):
    """The value of an option is outside the range that its algorithm declares."""

    reason = "OPTION_OUT_OF_RANGE"
    template = "{algorithm}: {option} must be in {bound}, got {value}"


class InvalidOption(InvalidArgument):
    """The value of an option has the wrong type, or conflicts with another option."""

    reason = "INVALID_OPTION"
    template = "{algorithm}: {option} must be {bound}, got {value}"


class InvalidRule(InvalidArgument):
    """A rule for names sets an option that it cannot set."""

    reason = "INVALID_RULE"
    template = "the rule for {match!r}: {problem}"


class RuleMatchesNothing(InvalidArgument):
    """The pattern of a rule matches no parameter of its groups."""

    reason = "RULE_MATCHES_NOTHING"
    template = "no parameter matches the rule for {match!r}; {advice}"


class OptionConflict(Conflict):
    """Another caller has changed options of the group since this caller read them."""

    code = Code.ABORTED
    reason = "OPTION_CONFLICT"
    template = (
        "group {group!r}: {option} was to become {ours}, but it has been changed to {theirs} at version {since} "
        "by another caller; read the options again and decide"
    )


class JobOptionConflict(Conflict):
    """Another caller has changed options of the job as a whole since this caller read them."""

    code = Code.ABORTED
    reason = "JOB_OPTION_CONFLICT"
    template = (
        "job {job!r}: {option} was to become {ours}, but it has been changed to {theirs} at version {since} "
        "by another caller; read the options again and decide"
    )
