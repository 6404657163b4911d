"""Schedules that the server follows: functions of a job's version.

    optimizer = optd.AdamW(params, lr=1e-3, lr_schedule=optd.schedules.Cosine(steps=1000, warmup=100), session=session)

    optimizer = optd.AdamW(params, schedules={"weight_decay": optd.schedules.Linear(steps=1000)}, session=session)

`lr_schedule` is for `lr`, and `momentum_schedule` for `momentum` or else `betas[0]`. `schedules` has one for each of
its keys: a float option of the algorithm, by its name; one of several numbers, such as `"betas[1]"`; `clip_norm` and
`clip_value` of a group, or `lookahead_alpha`. All three are arguments of every optimizer, of every group and of rules.
The `schedules` of a group replace all those of the defaults. `schedules={"lr": ...}` is the same as `lr_schedule`; both
for one option are refused.

A schedule gives a factor for each version, and a step takes the option times the factor. So all workers of a job share
one schedule, `lr` keeps the value that people set and may be changed meanwhile, and the schedule survives restarts of
workers. Schedules that torch has too give the numbers of `torch.optim.lr_scheduler`. Torch's own classes also work, on
one worker of a job.

On the wire and in `optctl set` a schedule is its text: `cosine(steps=1000, warmup=100)`, which an option takes as well.
The server checks the arguments, and raises `InvalidOption` with what they must be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from optd_wire.errors import InvalidRequest


class Schedule:
    """The base of all schedules; `str()` gives the text of one."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, each.name, _plain(getattr(self, each.name)))

    def __str__(self) -> str:
        given = [(each.name, each.default, getattr(self, each.name)) for each in fields(self)]  # type: ignore[arg-type]
        arguments = ", ".join(f"{name}={_text(value)}" for name, default, value in given if value != default)
        return f"{self.name}({arguments})"


Schedules = Mapping[str, "Schedule | str | None"]
"""Schedules by the names of the options that they are for; None: none."""


def schedules_text(schedules: Mapping[Any, Any]) -> str | None:
    """The text of several schedules; None if there are none. Raises `InvalidRequest` for functions."""
    for name, value in schedules.items():
        if callable(value):  # no code travels to a server; any other bad value is for the server to refuse
            example = "optd.schedules.Cosine(steps=1000)"
            raise InvalidRequest(problem=f"schedules[{name!r}] must be a schedule, such as {example}, got {value!r}")
    given = {str(name): str(value) for name, value in schedules.items() if value is not None}
    return json.dumps(given, sort_keys=True) if given else None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numbers and arrays of numpy, tensors
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _text(value: object) -> str:
    if isinstance(value, bool | int | float | str):
        return repr(value)
    assert isinstance(value, Sequence)
    return "(" + ", ".join(map(repr, value)) + ("," if len(value) == 1 else "") + ")"


@dataclass(frozen=True)
class Constant(Schedule):
    """The option as it is, after a linear warm-up over `warmup` versions from the factor `warmup_start` to 1."""

    name = "constant"
    warmup: int = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class Linear(Schedule):
    """A line from `start` to `end` over `steps` versions, and `end` after it; a warm-up before, as in `Constant`."""

    name = "linear"
    steps: int
    start: float = 1.0
    end: float = 0.0
    warmup: int = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `end` over `steps` versions, and `end` after it; a warm-up before, as in `Constant`."""

    name = "cosine"
    steps: int
    end: float = 0.0
    warmup: int = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class Step(Schedule):
    """Times `gamma`, of [0, 1], after every `size` versions; a warm-up before, as in `Constant`."""

    name = "step"
    size: int
    gamma: float = 0.1
    warmup: int = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class Exponential(Schedule):
    """Times `gamma`, of [0, 1], after every version; a warm-up before, as in `Constant`."""

    name = "exponential"
    gamma: float
    warmup: int = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class Polynomial(Schedule):
    """What is left of `steps`, to `power`, from 1 to `end`; a warm-up before, as in `Constant`."""

    name = "polynomial"
    steps: int
    power: float = 1.0
    end: float = 0.0
    warmup: int = 0
    warmup_start: float = 0.0


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from 1/`div_factor` to 1 in a share `pct_start` of `steps`, then down to a `final_div_factor`-th of the start.

    As torch's OneCycleLR with the group's option as `max_lr`. `anneal` is "cos" or "linear".
    """

    name = "one_cycle"
    steps: int
    pct_start: float = 0.3
    anneal: str = "cos"
    three_phase: bool = False
    div_factor: float = 25.0
    final_div_factor: float = 1e4


@dataclass(frozen=True)
class MomentumCycle(Schedule):
    """Down from 1 to `low` while `OneCycle` rises, and up again: for `momentum_schedule`.

    As torch's OneCycleLR cycles momentum, with the group's option as `max_momentum` and `low` times it as
    `base_momentum`.
    """

    name = "momentum_cycle"
    steps: int
    pct_start: float = 0.3
    anneal: str = "cos"
    three_phase: bool = False
    low: float = 0.85 / 0.95


@dataclass(frozen=True)
class Piecewise(Schedule):
    """The factor 1, and from version `at[i]` on `factors[i]`; a warm-up before, as in `Constant`."""

    name = "piecewise"
    at: Sequence[int]
    factors: Sequence[float]
    warmup: int = 0
    warmup_start: float = 0.0
