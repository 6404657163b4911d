"""Options of a job as a whole, whatever its algorithm; `optd.Gradients`, `optd.EMA` and `optd.SWA` set them."""

from collections.abc import Sequence

from optd_server.optim.option import Constraint, Option, Range

CLIP_NORM = "clip_norm"
CLIP_NORM_TYPE = "clip_norm_type"
NONFINITE = "nonfinite"
ACCUMULATE = "accumulate"
REDUCTION = "reduction"
EMA_DECAY = "ema_decay"
SWA_START = "swa_start"
SWA_EVERY = "swa_every"
REJECT, SKIP, ZERO = "reject", "skip", "zero"
MEAN, SUM = "mean", "sum"

_POSITIVE = Range(0, None, low_open=True)


class JobDeclaration:
    """The options of a job, in the form that `option.check` takes."""

    name = "job"
    options: Sequence[Option] = (
        Option(
            CLIP_NORM,
            "float",
            None,
            _POSITIVE,
            nullable=True,
            doc="Upper bound of the norm of a step's gradient over all groups, as `torch.nn.utils.clip_grad_norm_` "
            "computes it; a larger gradient is scaled down. In a `sync` job it bounds the workers' combined gradient. "
            "None: no bound.",
        ),
        Option(
            CLIP_NORM_TYPE,
            "float",
            2.0,
            Range(0, None, low_open=True, infinite=True),
            doc="The p of the p-norm that `clip_norm` bounds, here and in groups; infinity: the largest magnitude.",
        ),
        Option(
            NONFINITE,
            "text",
            REJECT,
            choices=(REJECT, SKIP, ZERO),
            doc="What the server does with a push that contains a NaN or an infinity. 'reject': it raises "
            "`NonfiniteGradient`. 'skip': it makes no step of the push and the others of its round, and the result is "
            "`skipped`. 'zero': such elements count as zeros. A push that is under way when this option changes is "
            "treated as before.",
        ),
        Option(
            ACCUMULATE,
            "int",
            1,
            Range(1, None),
            doc="How many pushes make one step; in a `sync` job, how many rounds. Each push is answered at once, and "
            "the `accumulated` of its result counts them; weights and version change with the last one. The sum "
            "belongs to the job and outlives the workers; `flush()` makes the step earlier, and so does lowering this "
            "option to the number of pushes so far.",
        ),
        Option(
            REDUCTION,
            "text",
            MEAN,
            choices=(MEAN, SUM),
            doc="How the gradients of a round, and of accumulated pushes, are combined. 'mean': `sum(w * g) / sum(w)` "
            "over the pushes that have the parameter, w being the weight of each push. 'sum': `sum(w * g)`, as "
            "`backward()` adds up in `.grad`; w is 1 unless `step` is given a `weight`. A round that is under way when "
            "this option changes is combined as before; accumulated rounds follow the option in force at their step.",
        ),
        Option(
            EMA_DECAY,
            "float",
            None,
            Range(0, 1),
            nullable=True,
            doc="How much of itself an exponential moving average of the weights keeps at each step. None: no such "
            "average.",
        ),
        Option(
            SWA_START,
            "int",
            None,
            Range(0, None),
            nullable=True,
            doc="The first version that enters an equal average of the weights. None: no such average.",
        ),
        Option(SWA_EVERY, "int", 1, Range(1, None), doc="Every so many versions, one enters the equal average."),
    )
    constraints: Sequence[Constraint] = ()


JOB = JobDeclaration()
