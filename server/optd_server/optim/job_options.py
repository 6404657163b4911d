"""Options of a job as a whole, whatever its algorithm."""

from collections.abc import Sequence

from optd_server.optim.option import Option, Range, Rule

CLIP_NORM = "clip_norm"
CLIP_NORM_TYPE = "clip_norm_type"

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
    )
    rules: Sequence[Rule] = ()


JOB = JobDeclaration()
