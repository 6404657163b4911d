"""The arguments that every optimizer class has besides its options: which job it trains, and how it behaves.

They are the client's own, so no server declares them. A test compares them with the signatures of `optd.Optimizer` and
of `optd.torch.optimizer.Served`.
"""

from generation.options import Argument

_NAMED = (
    'A group dict may name another `algorithm`, as `{"params": matrices, "algorithm": "muon"}`: it then has that '
    "algorithm's options and defaults, and of the arguments here only those that every algorithm has, from "
    "`lr_schedule` to `rules`."
)
_PARAMS = (
    "The arrays to train, as `optd.Optimizer` takes them: a tree of arrays, a list of `(name, tree)` pairs, or a list "
    "of group dicts whose options take precedence over the arguments here."
)
_TORCH_PARAMS = (
    "The tensors to train, as torch takes them: tensors, `(name, tensor)` pairs, or group dicts whose options take "
    "precedence over the arguments here. `optd.torch.optimizer.Served` says which tensors a server can hold."
)


def params(*, torch: bool, alone: bool) -> Argument:
    """Return the first argument, which has no default; `alone` says that the algorithm takes one group only."""
    doc = (_TORCH_PARAMS if torch else _PARAMS) + ("" if alone else f" {_NAMED}")
    return Argument("params", "ParamsT" if torch else "Any", "", doc)


_ARGUMENTS = (
    Argument(
        "session",
        "Session | None",
        "None",
        "An open session of `optd.connect`, for this optimizer alone. None: the optimizer opens one, and closes it.",
    ),
    Argument(
        "server",
        "str | None",
        "None",
        "HOST:PORT of the server, if there is no `session`. None: the environment's OPTD_SERVER.",
    ),
    Argument(
        "job",
        "str | None",
        "None",
        "Name of the job, which other workers can share. None: OPTD_JOB, or a job of this optimizer's own that ends "
        "with its session.",
    ),
    Argument(
        "worker",
        "str | None",
        "None",
        "Name of this worker. None: OPTD_WORKER, or the host's name and the process id.",
    ),
    Argument(
        "if_exists",
        "IfExists | None",
        "None",
        'What to do if a job of this name exists: "attach" takes part in it, "fail" raises `JobExists`, "replace" '
        'deletes it and creates a new one. None: OPTD_IF_EXISTS, or "attach".',
    ),
    Argument(
        "policy",
        "Policy | None",
        "None",
        "When pushes become a step: `optd.Async()`, `optd.Sync(workers=...)` or `optd.Bounded(...)`, for a job that is "
        "created here. None: "
        "the policy of the job, or `optd.Async()` for a new one.",
    ),
    Argument(
        "gradients",
        "Gradients | None",
        "None",
        "How the server treats gradients before a step: `optd.Gradients(...)`, for a job that is created here. None: "
        "the defaults of `optd.Gradients`.",
    ),
    Argument(
        "averages",
        "Averages | None",
        "None",
        "Averages of the weights that the server keeps: `optd.EMA(...)`, `optd.SWA(...)` or a list of both, for a job "
        "that is created here. None: no averages.",
    ),
    Argument(
        "progress",
        "bool | None",
        "None",
        "Whether long transfers of a large model show their progress. None: yes, unless OPTD_PROGRESS is 0.",
    ),
    Argument(
        "durable",
        "bool | None",
        "None",
        "Whether each push and step waits until it is on the server's disk and survives a power cut. None: no, unless "
        "OPTD_DURABLE is 1.",
    ),
    Argument(
        "recreate",
        "bool | None",
        "None",
        "Whether a job that is gone after a restart of the server is created anew with this worker's weights. None: "
        "no, unless OPTD_RECREATE is 1; then calls raise `JobLost`.",
    ),
    Argument(
        "zero_copy",
        "bool",
        "False",
        "Whether weights and gradients stay in memory that is shared with the server, if the session has such memory. "
        "Default: False.",
    ),
    Argument(
        "local_changes",
        'Literal["send", "warn", "ignore"]',
        '"send"',
        'What to do with weights that the script itself has changed since the last step: "send" them unless that would '
        'undo the steps of other workers, "warn" that the step replaces them, or "ignore" them. Default: "send".',
    ),
    Argument(
        "norms",
        "bool",
        "False",
        "Whether each step reports the norms of its gradient and of its update in `last`. Default: False.",
    ),
)
_BUFFERS = Argument(
    "buffers",
    "Mapping[str, Any] | None",
    "None",
    "Arrays by name, such as running means, that travel with the job: their mean over a round, or else what was pushed "
    "last, becomes the job's, and each step and pull writes the job's into them. None: no buffers.",
)
_TORCH_BUFFERS = Argument(
    "buffers",
    "BuffersOf | None",
    "None",
    "The model, or a dict of tensors by name, whose buffers travel with the job, such as the running statistics of "
    "BatchNorm: their mean over a round, or else what was pushed last, becomes the job's, and each step and pull "
    "writes the job's into the model. None: buffers stay with each worker.",
)


def session_arguments(*, torch: bool) -> tuple[Argument, ...]:
    """Return the arguments in the order of the signatures."""
    return (*_ARGUMENTS, _TORCH_BUFFERS if torch else _BUFFERS)
