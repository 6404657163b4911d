"""The nouns of the contract as plain frozen values, so that engine and client never handle generated messages.

A class has the name and the fields of its message; `optd_wire.messages` checks that on import and converts between the
two. A value does not copy the mappings and tuples that it is built from: do not change them afterwards.

Open `jobs` first: it builds on `parameters`, `options` and `policies`, and the other files build on it.
"""

from optd_wire.values.inspection import (
    FieldStatistics,
    JobReport,
    Limits,
    ParameterReport,
    Rejection,
    RoundInfo,
    ServerStatus,
    Statistics,
)
from optd_wire.values.jobs import (
    AverageInfo,
    GradientSummary,
    GroupInfo,
    GroupSpec,
    GroupSummary,
    JobInfo,
    JobSpec,
    JobSummary,
    JobVersion,
    SnapshotInfo,
)
from optd_wire.values.options import (
    AlgorithmInfo,
    EffectiveOptions,
    GroupOptions,
    GroupUpdate,
    JobOptions,
    JobUpdate,
    OptionChange,
    OptionInfo,
    Options,
    OptionValue,
    Single,
)
from optd_wire.values.parameters import FlatRange, ParameterInfo, ParameterSpec
from optd_wire.values.policies import Async, Bounded, Exponential, OnDeath, Policy, Sync
from optd_wire.values.pushes import GroupNorms, PullResult, PushHeader, PushResult
from optd_wire.values.shared_memory import SharedExtent, SharedGradient, SharedMemory, SharedSegment, SharedWeights
from optd_wire.values.state import (
    GRADIENT,
    STEP,
    WEIGHTS,
    GroupState,
    ReadStateResult,
    StateEntries,
    StateShape,
    WriteStateHeader,
)
from optd_wire.values.workers import (
    EXPIRED,
    LEFT,
    REPLACED,
    ROLLED_BACK,
    Membership,
    Shard,
    StalenessSummary,
    WorkerInfo,
)

__all__ = [
    "EXPIRED",
    "GRADIENT",
    "LEFT",
    "REPLACED",
    "ROLLED_BACK",
    "STEP",
    "WEIGHTS",
    "AlgorithmInfo",
    "Async",
    "AverageInfo",
    "Bounded",
    "EffectiveOptions",
    "Exponential",
    "FieldStatistics",
    "FlatRange",
    "GradientSummary",
    "GroupInfo",
    "GroupNorms",
    "GroupOptions",
    "GroupSpec",
    "GroupState",
    "GroupSummary",
    "GroupUpdate",
    "JobInfo",
    "JobOptions",
    "JobReport",
    "JobSpec",
    "JobSummary",
    "JobUpdate",
    "JobVersion",
    "Limits",
    "Membership",
    "OnDeath",
    "OptionChange",
    "OptionInfo",
    "OptionValue",
    "Options",
    "ParameterInfo",
    "ParameterReport",
    "ParameterSpec",
    "Policy",
    "PullResult",
    "PushHeader",
    "PushResult",
    "ReadStateResult",
    "Rejection",
    "RoundInfo",
    "ServerStatus",
    "Shard",
    "SharedExtent",
    "SharedGradient",
    "SharedMemory",
    "SharedSegment",
    "SharedWeights",
    "Single",
    "SnapshotInfo",
    "StalenessSummary",
    "StateEntries",
    "StateShape",
    "Statistics",
    "Sync",
    "WorkerInfo",
    "WriteStateHeader",
]

# Reprs, tracebacks and pickles name a class by the place that people import it from.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
del _name
