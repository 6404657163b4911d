"""What a job as a whole is told when it is created: how its gradients are treated. The server declares the options."""

from dataclasses import dataclass, fields
from typing import Literal

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
    """How many pushes, in a `sync` job rounds of them, make one step: of the mean of all gradients, by their weights,
    where each parameter's is over those that have it. Each is answered at once, `accumulated` in its result tells how
    many there are, and until the last one weights and version stay what they are."""


def options_of(*given: object) -> dict[str, OptionValue]:
    """The options that differ from their defaults, of instances of `Gradients` and the like, or None."""
    return {
        field.name: getattr(each, field.name)
        for each in given
        if each is not None
        for field in fields(each)  # type: ignore[arg-type]
        if getattr(each, field.name) != field.default
    }
