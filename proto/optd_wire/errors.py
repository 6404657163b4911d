"""Every error that optd raises, on either side: one class, one reason, one message.

An error is data: its values travel as the metadata of a `google.rpc.ErrorInfo` (see `optd_wire.status`), and the
client raises the class that the server raised, with the same message.

    OptdError
    |- InvalidArgument (ValueError)        the call is wrong whatever the server holds
    |- Unauthenticated (PermissionError)   no token, or a wrong one
    |- NotFound (LookupError)              no such job, group, parameter, worker
    |- Conflict                            the call does not fit what the server holds now
    |- ResourceExhausted                   a limit of the server
    |- Unavailable (ConnectionError)       not reached, not ready, or going down
    |- Expired (TimeoutError)              not done in time
    `- Internal                            a fault of the server
"""

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical codes of google.rpc.Code that optd uses."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


LONGEST_VALUE = 400  # bytes

BY_REASON: dict[str, type["OptdError"]] = {}


class OptdError(Exception):
    """What all errors of optd have: a canonical code, a reason, and the values that the message is made of.

    A concrete class declares `reason` and `template`; building one takes exactly the values of the template.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = ""
    template: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if "reason" in vars(cls):
            if cls.reason in BY_REASON:
                raise TypeError(f"{cls.__name__} and {BY_REASON[cls.reason].__name__} share {cls.reason}")
            BY_REASON[cls.reason] = cls

    def __init__(self, **values: object) -> None:
        self.values = {name: _shown(value) for name, value in values.items()}
        super().__init__(self.template.format(**self.values))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.values)


def _shown(value: object) -> str:
    """A value as text that fits into the trailers of a reply, whatever a caller has sent."""
    encoded = str(value).encode("utf-8", "backslashreplace")
    if len(encoded) > LONGEST_VALUE:
        encoded = encoded[: LONGEST_VALUE - 3] + b"..."
    return encoded.decode("utf-8", "ignore")


def _rebuild(cls: type[OptdError], values: dict[str, str]) -> OptdError:
    return cls(**values)


# ---------------------------------------------------------------------------------------------------------------
# InvalidArgument


class InvalidArgument(OptdError, ValueError):
    """The call is wrong whatever the server holds; nothing has changed."""

    code = Code.INVALID_ARGUMENT


class UnknownAlgorithm(InvalidArgument):
    """No algorithm has this name."""

    reason = "UNKNOWN_ALGORITHM"
    template = "no algorithm {algorithm!r}; {advice}"


class UnknownOption(InvalidArgument):
    """The algorithm has no such option."""

    reason = "UNKNOWN_OPTION"
    template = "{algorithm}: no option {option!r}; {advice} options are {options}"


class OptionOutOfRange(InvalidArgument):
    """An option's value is outside the range that its algorithm declares."""

    reason = "OPTION_OUT_OF_RANGE"
    template = "{algorithm}: {option} must be in {bound}, got {value}"


class InvalidOption(InvalidArgument):
    """An option's value is of the wrong kind, or does not go together with another option."""

    reason = "INVALID_OPTION"
    template = "{algorithm}: {option} must be {bound}, got {value}"


class InvalidName(InvalidArgument):
    """A name is empty, too long, or has characters that names may not have."""

    reason = "INVALID_NAME"
    template = "{kind} name {name} must be {rule}"


class DuplicateName(InvalidArgument):
    """Two groups of a job, or two parameters of it, have one name."""

    reason = "DUPLICATE_NAME"
    template = "{kind} name {name!r} is used twice in job {job!r}"


class DuplicateParameter(InvalidArgument):
    """One array is given twice in a group."""

    reason = "DUPLICATE_PARAMETER"
    template = "group {group!r} has one array twice, as {first!r} and as {second!r}"


class SharedParameters(InvalidArgument):
    """Two parameters lie in one memory: the weights of one would be written over by those of the other."""

    reason = "SHARED_PARAMETERS"
    template = (
        "parameters {first!r} and {second!r} lie in the same memory, where each would overwrite the other's weights; "
        "give one of them (for tied weights, let the modules have one parameter)"
    )


class ParameterInTwoGroups(InvalidArgument):
    """A parameter belongs to one group."""

    reason = "PARAMETER_IN_TWO_GROUPS"
    template = "parameter {parameter!r} is in group {first!r} and in group {second!r}; it may be in one"


class EmptyGroup(InvalidArgument):
    """A group, or a job, without parameters."""

    reason = "EMPTY_GROUP"
    template = "{what} has no parameters"


class InvalidShape(InvalidArgument):
    """A shape that no array can have here."""

    reason = "INVALID_SHAPE"
    template = (
        "parameter {parameter!r}: shape {shape} must have at most {max_dims} dimensions and {max_elements} elements"
    )


class UnservedShape(InvalidArgument):
    """A parameter of a shape that the algorithm has no step for."""

    reason = "UNSERVED_SHAPE"
    template = "{algorithm}: parameter {parameter!r} must {problem}, got shape {shape}"


class UnservedGroups(InvalidArgument):
    """The algorithm treats all parameters as one vector, and takes one group of one dtype."""

    reason = "UNSERVED_GROUPS"
    template = "{algorithm} takes one group, of parameters of one dtype; got {got}"


class LossMissing(InvalidArgument):
    """A push without a loss, to an algorithm that needs it."""

    reason = "LOSS_MISSING"
    template = "{algorithm} needs the loss with its gradients, as often as it asks for them: call step(closure)"


class InvalidRule(InvalidArgument):
    """A rule for names that sets what it cannot."""

    reason = "INVALID_RULE"
    template = "the rule for {match!r}: {problem}"


class RuleMatchesNothing(InvalidArgument):
    """A rule whose pattern matches no parameter of its groups."""

    reason = "RULE_MATCHES_NOTHING"
    template = "no parameter matches the rule for {match!r}; {advice}"


class InvalidPolicy(InvalidArgument):
    """A policy with a value out of range."""

    reason = "INVALID_POLICY"
    template = "policy sync: workers must be in [1, {most}], got {workers}"


class UnsupportedDtype(InvalidArgument):
    """An element type that the service does not have."""

    reason = "UNSUPPORTED_DTYPE"
    template = "parameter {parameter!r}: dtype {dtype} is not supported; supported are {supported}"


class NotAnArray(InvalidArgument):
    """Something that should be an array is none, or one that cannot be updated in place."""

    reason = "NOT_AN_ARRAY"
    template = "{what} must be {wanted}, got {got}"


class ShapeMismatch(InvalidArgument):
    """An array has another shape than its parameter."""

    reason = "SHAPE_MISMATCH"
    template = "{what} of parameter {parameter!r} must have shape {expected}, got {got}"


class DtypeMismatch(InvalidArgument):
    """An array or a frame has another element type than its parameter."""

    reason = "DTYPE_MISMATCH"
    template = "{what} of parameter {parameter!r} must have dtype {expected}, got {got}"


class StructureMismatch(InvalidArgument):
    """Gradients or state do not have the structure of the parameters."""

    reason = "STRUCTURE_MISMATCH"
    template = "{what} must have {expected}, got {got}"


class FrameOutOfRange(InvalidArgument):
    """A frame addresses elements that its group does not have, or that lie in two dtypes."""

    reason = "FRAME_OUT_OF_RANGE"
    template = "a frame addresses elements [{start}, {stop}) of group {group}; its ranges are {ranges}"


class FrameOverlap(InvalidArgument):
    """Two frames of one call address the same elements."""

    reason = "FRAME_OVERLAP"
    template = "{field} of parameter {parameter!r} is sent twice, at element {element} of group {group!r}"


class FrameLength(InvalidArgument):
    """A frame's payload does not have the bytes that its count and encoding declare."""

    reason = "FRAME_LENGTH"
    template = "a frame of group {group} declares {count} elements of {width}, but its payload has {got} bytes"


class RowOutOfRange(InvalidArgument):
    """A row that the parameter does not have."""

    reason = "ROW_OUT_OF_RANGE"
    template = "rows of parameter {parameter!r} must be in [0, {rows}), got {row}"


class RowFrameLength(InvalidArgument):
    """The ids or the payload of a row frame do not have the bytes that its count and encoding declare."""

    reason = "ROW_FRAME_LENGTH"
    template = (
        "a row frame of parameter {parameter!r} declares {count} rows, so that its {what} must have {wanted}, "
        "but it has {got} bytes"
    )


class RowsNotTaken(InvalidArgument):
    """The algorithm takes no gradients of some rows of a parameter."""

    reason = "ROWS_NOT_TAKEN"
    template = "{algorithm} takes no sparse gradients, and got rows of parameter {parameter!r}; {takers} take them"


class RowsOnly(InvalidArgument):
    """The algorithm takes gradients of some rows of a parameter, and no whole ones."""

    reason = "ROWS_ONLY"
    template = (
        "{algorithm} takes no dense gradients, and got one of parameter {parameter!r}; send its rows, or take adam"
    )


class RowsNeedZero(InvalidArgument):
    """An option that has to be 0 where gradients of some rows of a parameter are taken."""

    reason = "ROWS_NEED_ZERO"
    template = (
        "{algorithm}: {option} must be 0 for sparse gradients, and got rows of parameter {parameter!r} with {value}"
    )


class EncodingOverflow(InvalidArgument):
    """A finite number is too large for the encoding that it should be sent in."""

    reason = "ENCODING_OVERFLOW"
    template = "{encoding} carries numbers of magnitude up to {bound}, got {value}; send them in another encoding"


class UnknownEncoding(InvalidArgument):
    """No encoding has this name."""

    reason = "UNKNOWN_ENCODING"
    template = "no encoding {encoding!r}; encodings are {encodings}"


class IncompleteParameter(InvalidArgument):
    """Frames cover a part of a parameter only, or miss one that has to be there."""

    reason = "INCOMPLETE_PARAMETER"
    template = "{what} of parameter {parameter!r} covers {got} of its {size} elements"


class NonfiniteGradient(InvalidArgument):
    """A gradient has a NaN or an infinite element."""

    reason = "NONFINITE_GRADIENT"
    template = "gradient of parameter {parameter!r} has {value} at flat index {index}; the push was refused"


class UnknownField(InvalidArgument):
    """A field that the job's algorithm does not keep."""

    reason = "UNKNOWN_FIELD"
    template = "job {job!r} keeps no {field!r}; it keeps {fields}"


class UnknownAverage(InvalidArgument):
    """An average of the weights that the job does not keep."""

    reason = "UNKNOWN_AVERAGE"
    template = "job {job!r} keeps no average {average!r} of its weights; it keeps {averages}"


class InvalidRequest(InvalidArgument):
    """A message is well-formed, but lacks or exceeds something."""

    reason = "INVALID_REQUEST"
    template = "{problem}"


class MalformedMessage(InvalidArgument):
    """Bytes that are no message of the contract."""

    reason = "MALFORMED_MESSAGE"
    template = "the bytes are no {message}: {problem}"


# ---------------------------------------------------------------------------------------------------------------
# Unauthenticated


class Unauthenticated(OptdError, PermissionError):
    """The caller has not shown a token that the server accepts."""

    code = Code.UNAUTHENTICATED


class MissingToken(Unauthenticated):
    """The server wants a token, and the call had none."""

    reason = "MISSING_TOKEN"
    template = "this server wants a token: pass token= or set OPTD_TOKEN"


class WrongToken(Unauthenticated):
    """The call's token is none of the server's."""

    reason = "WRONG_TOKEN"
    template = "the token is not one of this server's"


# ---------------------------------------------------------------------------------------------------------------
# NotFound


class NotFound(OptdError, LookupError):
    """The server does not hold what the call names."""

    code = Code.NOT_FOUND


class UnknownJob(NotFound):
    """No job has this name."""

    reason = "UNKNOWN_JOB"
    template = "no job {job!r} on this server"


class UnknownGroup(NotFound):
    """The job has no such group."""

    reason = "UNKNOWN_GROUP"
    template = "job {job!r} has no group {group!r}; its groups are {groups}"


class UnknownParameter(NotFound):
    """The job has no such parameter."""

    reason = "UNKNOWN_PARAMETER"
    template = "{where} has no parameter {parameter!r}"


class UnknownWorker(NotFound):
    """The worker has never joined the job."""

    reason = "UNKNOWN_WORKER"
    template = "worker {worker!r} has not joined job {job!r}"


# ---------------------------------------------------------------------------------------------------------------
# Conflict


class Conflict(OptdError):
    """The call does not fit what the server holds now; nothing has changed."""

    code = Code.FAILED_PRECONDITION


class JobExists(Conflict):
    """A job of this name exists already, or is being uploaded."""

    code = Code.ALREADY_EXISTS
    reason = "JOB_EXISTS"
    template = "job {job!r} {how}"


class JobReplaced(Conflict):
    """A worker that joins again finds another job under the name."""

    reason = "JOB_REPLACED"
    template = (
        "job {job!r} was deleted and created anew since worker {worker!r} joined it: construct another optimizer to "
        "take part in the new one"
    )


class JobInUse(Conflict):
    """A job is to be replaced while other workers take part in it."""

    reason = "JOB_IN_USE"
    template = (
        "job {job!r} cannot be replaced: other workers hold a lease there ({workers}); stop them, or wait {seconds} s "
        "if they have crashed, or delete the job with optd.delete_job() or optctl delete"
    )


class JobMismatch(Conflict):
    """Attaching with another registration than the job's."""

    reason = "JOB_MISMATCH"
    template = (
        "job {job!r} has {aspect} {theirs}, this registration has {ours}; "
        "register the same, or take another job (job=, OPTD_JOB)"
    )


class StaleEpoch(Conflict):
    """The worker's epoch has been fenced: its name was joined again, or its lease ran out."""

    reason = "STALE_EPOCH"
    template = "worker {worker!r} of job {job!r} calls with epoch {epoch}, but {why}; open a new session to go on"


class SequenceGap(Conflict):
    """A push skips a sequence number, or repeats one that is older than the last."""

    reason = "SEQUENCE_GAP"
    template = "worker {worker!r} pushes sequence {sequence}, expected {expected} (or {last} again)"


class FutureVersion(Conflict):
    """A push says that its gradient is of a version that the job has not come to yet."""

    reason = "FUTURE_VERSION"
    template = (
        "worker {worker!r} pushes a gradient of version {base_version} of job {job!r}, which is at version {version}; "
        "pull() and compute it anew"
    )


class PushPending(Conflict):
    """The worker has another push that waits for its round."""

    reason = "PUSH_PENDING"
    template = "worker {worker!r} has a push with sequence {sequence} that waits for its step"


class OptionConflict(Conflict):
    """Options were changed by somebody else since the caller saw them."""

    code = Code.ABORTED
    reason = "OPTION_CONFLICT"
    template = (
        "group {group!r}: {option} was to become {ours}, but it has been changed to {theirs} at version {since} "
        "by another caller; read the options again and decide"
    )


class JobOptionConflict(Conflict):
    """Options of a job as a whole were changed by somebody else since the caller saw them."""

    code = Code.ABORTED
    reason = "JOB_OPTION_CONFLICT"
    template = (
        "job {job!r}: {option} was to become {ours}, but it has been changed to {theirs} at version {since} "
        "by another caller; read the options again and decide"
    )


class StaleEvaluation(Conflict):
    """Loss and gradients of other weights than those that a step asks about."""

    code = Code.ABORTED
    reason = "STALE_EVALUATION"
    template = (
        "{algorithm} asks about the weights of version {version} of job {job!r}, and worker {worker!r} has evaluated "
        "those {evaluated}; pull() and step again (several workers share a step under policy sync)"
    )


class OtherWorkers(Conflict):
    """A worker would replace weights only if it were alone, but other workers hold leases."""

    reason = "OTHER_WORKERS"
    template = (
        "worker {worker!r} may write weights of job {job!r} only while it is alone, but workers {others} hold leases; "
        "write without if_alone_at to undo their steps"
    )


class WeightsMovedOn(Conflict):
    """A worker would replace weights, but does not hold the current ones."""

    reason = "WEIGHTS_MOVED_ON"
    template = (
        "worker {worker!r} would replace the weights of version {base} of job {job!r}, but they are now {now}; pull "
        "first, or write without if_alone_at to undo what has happened since"
    )


class PushWithdrawn(Conflict):
    """A push that waited for its round was taken back: its worker left, joined again or lost its lease."""

    code = Code.ABORTED
    reason = "PUSH_WITHDRAWN"
    template = "the push of worker {worker!r} with sequence {sequence} was withdrawn before its step: {why}"


class EmptyAverage(Conflict):
    """An average of the weights that no version has entered yet."""

    reason = "EMPTY_AVERAGE"
    template = "no version of the weights of job {job!r} has entered its average {average!r} yet"


class JobFailed(Conflict):
    """A step broke off half-way; the job can be read, not stepped."""

    reason = "JOB_FAILED"
    template = "job {job!r} failed in the step after version {version}: {problem}"


class ForkedSession(Conflict):
    """A session was used in a process that was forked from the one that opened it."""

    reason = "FORKED_SESSION"
    template = "this session belongs to process {owner}, not to {process}: open a session in each process"


class SessionClosed(Conflict):
    """A session was used after it was closed."""

    reason = "SESSION_CLOSED"
    template = "the session of job {job!r} is closed"


class WorkerInUse(Conflict):
    """The process has an optimizer under the same job and worker already, which a second one would fence."""

    reason = "WORKER_IN_USE"
    template = (
        "this process has an open optimizer in job {job!r} as worker {worker!r} already: close() that one first, or "
        "pass another job= here (OPTD_JOB names the job of one optimizer)"
    )


class AlreadyRegistered(Conflict):
    """A session carries one optimizer."""

    reason = "ALREADY_REGISTERED"
    template = "the session of job {job!r} has its optimizer already; open another session for another job"


# ---------------------------------------------------------------------------------------------------------------
# ResourceExhausted


class ResourceExhausted(OptdError):
    """A limit of the server."""

    code = Code.RESOURCE_EXHAUSTED


class SharedMemoryUnavailable(ResourceExhausted):
    """The server and this worker have no memory that both can see; frames travel by gRPC then."""

    reason = "SHARED_MEMORY_UNAVAILABLE"
    template = "no shared memory with the server: {why}"


class MemoryExceeded(ResourceExhausted):
    """The memory planned for a job does not fit what the server may use."""

    reason = "MEMORY_EXCEEDED"
    template = "{what} needs {needed} bytes, {free} of the server's {limit} are free (--max-memory-bytes)"


class MessageTooLarge(ResourceExhausted):
    """A message is larger than its receiver accepts."""

    reason = "MESSAGE_TOO_LARGE"
    template = "a message is too large: {problem} (--max-message-bytes)"


class TooManyRequests(ResourceExhausted):
    """The server answers as many requests as it may."""

    reason = "TOO_MANY_REQUESTS"
    template = "the server answers {limit} requests already (--max-requests)"


class TooManyBytes(ResourceExhausted):
    """The server holds as many bytes of requests as it may."""

    reason = "TOO_MANY_BYTES"
    template = "the server holds {limit} bytes of requests already, for {seconds} s (--max-inflight-bytes)"


# ---------------------------------------------------------------------------------------------------------------
# Unavailable


class Unavailable(OptdError, ConnectionError):
    """The server was not reached, is not ready, or goes down."""

    code = Code.UNAVAILABLE


class Unreachable(Unavailable):
    """Nothing answered at the address."""

    reason = "UNREACHABLE"
    template = "no optd server answers at {address}: tried for {seconds} s ({problem})"


class ConnectionLost(Unavailable):
    """The connection broke while a call went on."""

    reason = "CONNECTION_LOST"
    template = "the connection to {address} was lost in {rpc}: {problem}"


class ShuttingDown(Unavailable):
    """The server takes no new calls."""

    reason = "SHUTTING_DOWN"
    template = "the server is shutting down"


class RoundBroken(Unavailable):
    """Another push of the same round failed, so there was no step; send this push again."""

    reason = "ROUND_BROKEN"
    template = "the step of job {job!r} that this push was on its way into was broken off, push again: {why}"


class NoAddress(InvalidArgument):
    """Neither session, server nor environment says where the server is."""

    reason = "NO_ADDRESS"
    template = "no server given: pass session=, server='HOST:PORT', or set OPTD_SERVER"


# ---------------------------------------------------------------------------------------------------------------
# Expired


class Expired(OptdError, TimeoutError):
    """Not done in time."""

    code = Code.DEADLINE_EXCEEDED


class DeadlineExceeded(Expired):
    """A call did not end within its timeout."""

    reason = "DEADLINE_EXCEEDED"
    template = "{rpc} at {address} took longer than {seconds} s{hint}"


class Stalled(Expired):
    """A stream moved no frame for too long."""

    reason = "STALLED"
    template = "{what} moved no frame for {seconds} s"


class TooSlow(Expired):
    """A reader of weights held up the job: its next step waited for the memory that the reader read from."""

    reason = "TOO_SLOW"
    template = (
        "the weights of version {version} were read for more than {seconds} s while a step waited for their memory; "
        "pull again"
    )


# ---------------------------------------------------------------------------------------------------------------
# Internal


class Internal(OptdError):
    """A fault of the server, or an answer that the client does not understand."""


class InternalError(Internal):
    """The server failed in a way that it did not foresee; its log has the rest under `incident`."""

    reason = "INTERNAL"
    template = "the server failed (incident {incident}); its log says more"


class UnexpectedStatus(Internal):
    """A status without a reason of optd: from a proxy, or from a server of another version."""

    reason = "UNEXPECTED_STATUS"
    template = "{rpc} at {address} ended with {status}: {problem}"
