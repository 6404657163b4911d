"""What a job as a whole is told when it is created: how its gradients are treated, and which averages it keeps.

The server declares the options; what is wrong with one it says when the job is created.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from optd_wire.errors import InvalidRequest
from optd_wire.values import OptionValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """How the gradients of a job are treated before each step; for `optd.connect(gradients=...)`.

    What is left as it is here is the server's default; `Session.set_options` changes any of it in mid-training.
    """

    clip_norm: float | None = None
    """The largest norm of a step's gradient over all groups, as `torch.nn.utils.clip_grad_norm_` takes it; larger ones
    are scaled down. In a `sync` job that is the mean of the workers' gradients."""
    clip_norm_type: float = 2.0
    """Which p-norm that is, and that of groups with a `clip_norm` of their own; `math.inf`: the largest magnitude."""
    nonfinite: Literal["reject", "skip", "zero"] = "reject"
    """What becomes of a push with a NaN or infinity: it is refused, as `NonfiniteGradient`; or no step is made of it,
    nor of the others of its round, and the result is `skipped`; or such entries count as zeros. A push that is under
    way when this is changed is treated as before."""
    accumulate: int = 1
    """How many pushes, in a `sync` job rounds of them, make one step. Each is answered at once, `accumulated` in its
    result tells how many there are, and until the last one weights and version stay what they are. What has been added
    up belongs to the job, whoever leaves it: `flush()` of an optimizer makes the step of it earlier, and so does
    setting this to no more than there are."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the gradients of a round, and of pushes that are accumulated, become one. "mean": the mean by the weights of
    the pushes, ``sum(w_i * g_i) / sum(w_i)``, where each parameter's is over the pushes that have it. "sum":
    ``sum(w_i * g_i)``, as `backward()` of several losses adds up in `.grad`; `weight` is 1 unless `step` is given one.
    A round that is under way when this is changed is put together as before; of an accumulation window, what is in
    force at its step counts."""

    def options(self) -> dict[str, OptionValue]:
        """The options that differ from the server's defaults."""
        given = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in given.items() if value != default}


@dataclass(frozen=True, slots=True)
class EMA:
    """An exponential moving average of the weights, for `optd.connect(averages=...)`; `pull(weights="ema")` reads it.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`, updated after every step.
    """

    decay: float = 0.999
    """What the average keeps of itself at each step, in [0, 1]."""

    def options(self) -> dict[str, OptionValue]:
        """The options of a job that keeps it."""
        return {"ema_decay": self.decay}


@dataclass(frozen=True, slots=True)
class SWA:
    """The equal average of versions of the weights, for `optd.connect(averages=...)`; `pull(weights="swa")` reads it.

    As `torch.optim.swa_utils.AveragedModel`, updated after the steps that lead to the versions `start`,
    `start + every`, `start + 2 * every`, …
    """

    start: int = 0
    every: int = 1

    def options(self) -> dict[str, OptionValue]:
        """The options of a job that keeps it."""
        return {"swa_start": self.start, "swa_every": self.every}


Averages = EMA | SWA | Iterable[EMA | SWA]


def options_of(gradients: Gradients | None, averages: Averages | None) -> dict[str, OptionValue]:
    """The options of a job as a whole, from what `connect` is given; raises `InvalidRequest` for anything else."""
    listed = averages if isinstance(averages, Iterable) and not isinstance(averages, str) else [averages]
    kept: list[Any] = [] if averages is None else list(listed)
    if not isinstance(gradients, Gradients | None):
        raise InvalidRequest(problem=f"gradients must be optd.Gradients(...), got {gradients!r}")
    for each in kept:
        if not isinstance(each, EMA | SWA):
            raise InvalidRequest(
                problem=f"averages must be optd.EMA(...), optd.SWA(...) or a list of them, got {each!r}"
            )
        if len([other for other in kept if type(other) is type(each)]) > 1:
            raise InvalidRequest(problem=f"averages must be one of a kind, got several optd.{type(each).__name__}")
    given = (*kept, *([] if gradients is None else [gradients]))
    return {name: value for each in given for name, value in each.options().items()}
