"""Every error that optd raises, on either side: one class, one reason, one message. Open `base` first.

An error is data: its values travel as the metadata of a `google.rpc.ErrorInfo` (`optd_wire.error_status`), and the
client raises the class that the server raised, with the same message. `base` has the root and the kinds; the errors
of each kind are in the file before their names:

    OptdError
    |- InvalidArgument (ValueError)         the call is wrong, whatever the server holds
    |    jobs:        InvalidName, DuplicateName, DuplicateParameter, SharedParameters, ParameterInTwoGroups,
    |                 EmptyGroup, InvalidShape, UnservedShape, UnservedGroups, InvalidPolicy
    |    options:     UnknownAlgorithm, UnknownOption, OptionOutOfRange, InvalidOption, InvalidRule,
    |                 RuleMatchesNothing
    |    arrays:      NotAnArray, UnsupportedDtype, ShapeMismatch, DtypeMismatch, StructureMismatch
    |    frames:      InvalidRequest, MalformedMessage, FrameOutOfRange, FrameOverlap, FrameLength,
    |                 IncompleteParameter, RowOutOfRange, RowFrameLength, UnknownEncoding, EncodingOverflow
    |    pushes:      LossMissing, NonfiniteGradient, RowsNotTaken, RowsOnly, RowsNeedZero
    |    state:       UnknownField, UnknownAverage
    |    storage:     WrongCheckpoint
    |    connection:  NoAddress
    |- Unauthenticated (PermissionError)    no token, or a wrong one
    |    access:      MissingToken, WrongToken
    |- NotFound (LookupError)               no such job, group, parameter or worker
    |    jobs:        UnknownJob, JobLost, UnknownGroup, UnknownParameter
    |    storage:     VersionNotKept, NoCheckpoint
    |    workers:     UnknownWorker
    |- Conflict                             the call does not fit what the server or session holds now
    |    jobs:        JobExists, JobReplaced, JobInUse, JobMismatch, JobFailed, NothingDurable
    |    options:     OptionConflict, JobOptionConflict
    |    pushes:      SequenceGap, FutureVersion, PushPending, PushWithdrawn, StaleEvaluation, StaleGradient,
    |                 RoundClosed, WorkerLost, OtherPayload
    |    state:       EmptyAverage, OtherWorkers, WeightsMovedOn
    |    storage:     JobDamaged, CheckpointExists, DamagedCheckpoint, CheckpointMismatch, PlaceUnusable
    |    workers:     StaleEpoch, LeaseExpired, RolledBack, ForkedSession, SessionClosed, WorkerInUse,
    |                 AlreadyRegistered
    |- ResourceExhausted                    a limit of the server
    |    workers:     SharedMemoryUnavailable
    |    limits:      MemoryExceeded, MessageTooLarge, TooManyRequests, TooManyBytes
    |    storage:     DiskFull
    |- Unavailable (ConnectionError)        not reached, not ready, or shutting down
    |    pushes:      RoundBroken
    |    storage:     JobReloads
    |    connection:  Unreachable, ConnectionLost, ShuttingDown
    |- Expired (TimeoutError)               not done in time
    |    limits:      Stalled, TooSlow
    |    connection:  DeadlineExceeded
    `- Internal                             a fault of the server
         connection:  InternalError, UnexpectedStatus
"""

from optd_wire.errors.access import MissingToken, WrongToken
from optd_wire.errors.arrays import DtypeMismatch, NotAnArray, ShapeMismatch, StructureMismatch, UnsupportedDtype
from optd_wire.errors.base import (
    BY_REASON,
    LONGEST_VALUE,
    Code,
    Conflict,
    Expired,
    Internal,
    InvalidArgument,
    NotFound,
    OptdError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from optd_wire.errors.connection import (
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    NoAddress,
    ShuttingDown,
    UnexpectedStatus,
    Unreachable,
)
from optd_wire.errors.frames import (
    EncodingOverflow,
    FrameLength,
    FrameOutOfRange,
    FrameOverlap,
    IncompleteParameter,
    InvalidRequest,
    MalformedMessage,
    RowFrameLength,
    RowOutOfRange,
    UnknownEncoding,
)
from optd_wire.errors.jobs import (
    DuplicateName,
    DuplicateParameter,
    EmptyGroup,
    InvalidName,
    InvalidPolicy,
    InvalidShape,
    JobExists,
    JobFailed,
    JobInUse,
    JobLost,
    JobMismatch,
    JobReplaced,
    NothingDurable,
    ParameterInTwoGroups,
    SharedParameters,
    UnknownGroup,
    UnknownJob,
    UnknownParameter,
    UnservedGroups,
    UnservedShape,
)
from optd_wire.errors.limits import MemoryExceeded, MessageTooLarge, Stalled, TooManyBytes, TooManyRequests, TooSlow
from optd_wire.errors.options import (
    InvalidOption,
    InvalidRule,
    JobOptionConflict,
    OptionConflict,
    OptionOutOfRange,
    RuleMatchesNothing,
    UnknownAlgorithm,
    UnknownOption,
)
from optd_wire.errors.pushes import (
    FutureVersion,
    LossMissing,
    NonfiniteGradient,
    OtherPayload,
    PushPending,
    PushWithdrawn,
    RoundBroken,
    RoundClosed,
    RowsNeedZero,
    RowsNotTaken,
    RowsOnly,
    SequenceGap,
    StaleEvaluation,
    StaleGradient,
    WorkerLost,
)
from optd_wire.errors.state import EmptyAverage, OtherWorkers, UnknownAverage, UnknownField, WeightsMovedOn
from optd_wire.errors.storage import (
    CheckpointExists,
    CheckpointMismatch,
    DamagedCheckpoint,
    DiskFull,
    JobDamaged,
    JobReloads,
    NoCheckpoint,
    PlaceUnusable,
    VersionNotKept,
    WrongCheckpoint,
)
from optd_wire.errors.workers import (
    AlreadyRegistered,
    ForkedSession,
    LeaseExpired,
    RolledBack,
    SessionClosed,
    SharedMemoryUnavailable,
    StaleEpoch,
    UnknownWorker,
    WorkerInUse,
)

__all__ = [
    "BY_REASON",
    "LONGEST_VALUE",
    "AlreadyRegistered",
    "CheckpointExists",
    "CheckpointMismatch",
    "Code",
    "Conflict",
    "ConnectionLost",
    "DamagedCheckpoint",
    "DeadlineExceeded",
    "DiskFull",
    "DtypeMismatch",
    "DuplicateName",
    "DuplicateParameter",
    "EmptyAverage",
    "EmptyGroup",
    "EncodingOverflow",
    "Expired",
    "ForkedSession",
    "FrameLength",
    "FrameOutOfRange",
    "FrameOverlap",
    "FutureVersion",
    "IncompleteParameter",
    "Internal",
    "InternalError",
    "InvalidArgument",
    "InvalidName",
    "InvalidOption",
    "InvalidPolicy",
    "InvalidRequest",
    "InvalidRule",
    "InvalidShape",
    "JobDamaged",
    "JobExists",
    "JobFailed",
    "JobInUse",
    "JobLost",
    "JobMismatch",
    "JobOptionConflict",
    "JobReloads",
    "JobReplaced",
    "LeaseExpired",
    "LossMissing",
    "MalformedMessage",
    "MemoryExceeded",
    "MessageTooLarge",
    "MissingToken",
    "NoAddress",
    "NoCheckpoint",
    "NonfiniteGradient",
    "NotAnArray",
    "NotFound",
    "NothingDurable",
    "OptdError",
    "OptionConflict",
    "OptionOutOfRange",
    "OtherPayload",
    "OtherWorkers",
    "ParameterInTwoGroups",
    "PlaceUnusable",
    "PushPending",
    "PushWithdrawn",
    "ResourceExhausted",
    "RolledBack",
    "RoundBroken",
    "RoundClosed",
    "RowFrameLength",
    "RowOutOfRange",
    "RowsNeedZero",
    "RowsNotTaken",
    "RowsOnly",
    "RuleMatchesNothing",
    "SequenceGap",
    "SessionClosed",
    "ShapeMismatch",
    "SharedMemoryUnavailable",
    "SharedParameters",
    "ShuttingDown",
    "StaleEpoch",
    "StaleEvaluation",
    "StaleGradient",
    "Stalled",
    "StructureMismatch",
    "TooManyBytes",
    "TooManyRequests",
    "TooSlow",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedStatus",
    "UnknownAlgorithm",
    "UnknownAverage",
    "UnknownEncoding",
    "UnknownField",
    "UnknownGroup",
    "UnknownJob",
    "UnknownOption",
    "UnknownParameter",
    "UnknownWorker",
    "Unreachable",
    "UnservedGroups",
    "UnservedShape",
    "UnsupportedDtype",
    "VersionNotKept",
    "WeightsMovedOn",
    "WorkerInUse",
    "WorkerLost",
    "WrongCheckpoint",
    "WrongToken",
]

# Reprs, tracebacks and pickles name a class by the place that people import it from.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
del _name
