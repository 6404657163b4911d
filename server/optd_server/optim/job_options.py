"""Options of a job as a whole, whatever its algorithm."""

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
    """What `option.check` needs to know of them."""

    name = "job"
    options: Sequence[Option] = (
        Option(
            CLIP_NORM,
            "float",
            None,
            _POSITIVE,
            nullable=True,
            doc="the largest norm of a step's gradient over all groups; a larger one is scaled down",
        ),
        Option(
            CLIP_NORM_TYPE,
            "float",
            2.0,
            Range(0, None, low_open=True, infinite=True),
            doc="the p of the p-norms that gradients are clipped by, of groups, too; inf: the largest magnitude",
        ),
        Option(
            NONFINITE,
            "text",
            REJECT,
            choices=(REJECT, SKIP, ZERO),
            doc="what becomes of a push with a NaN or an infinity: it is refused, or no step is made of it, or such "
            "entries count as zeros",
        ),
        Option(
            ACCUMULATE,
            "int",
            1,
            Range(1, None),
            doc="how many pushes, or rounds of them, make one step",
        ),
        Option(
            REDUCTION,
            "text",
            MEAN,
            choices=(MEAN, SUM),
            doc="how the gradients of a round, and of accumulated rounds, become one: their mean by the weights of the "
            "pushes, or their sum, each times its weight",
        ),
        Option(
            EMA_DECAY,
            "float",
            None,
            Range(0, 1),
            nullable=True,
            doc="what an exponential moving average of the weights keeps of itself at each step; None: there is none",
        ),
        Option(
            SWA_START,
            "int",
            None,
            Range(0, None),
            nullable=True,
            doc="the first version, of those that steps lead to, that enters an equal average of the weights; None: no "
            "such average",
        ),
        Option(SWA_EVERY, "int", 1, Range(1, None), doc="how many versions lie between two that enter the average"),
    )
    constraints: Sequence[Constraint] = ()


JOB = JobDeclaration()
