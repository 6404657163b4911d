"""Jobs of any algorithms, shapes, dtypes and options, made up from random numbers."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from optd_server.optim.algorithm import Iterative
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.option import Option
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.values import Async, Exponential, GroupSpec, JobSpec, OptionValue, ParameterSpec, Policy, Sync

Rng = np.random.Generator
NAMES = ("weight", "bias", "table", "norm")
SHAPES = ((), (1,), (3,), (7,), (2, 3), (5, 2), (4, 2, 2), (0, 3), (33,))
MATRICES = ((2, 3), (5, 2), (4, 4), (1, 3))
LARGE = (20_000, 3)
SCHEDULES = ("cosine(steps=6)", "linear(steps=4)", "step(size=2, gamma=0.5)", "exponential(gamma=0.9)")
MIXED = "mixed"
"""In the place of an algorithm's name: each group has one of its own."""


def chance(rng: Rng, of: float) -> bool:
    return bool(rng.random() < of)


def one(rng: Rng, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def algorithm_for(rng: Rng, algorithm: str) -> str:
    """An algorithm for one group."""
    if algorithm != MIXED:
        return algorithm
    return one(rng, [name for name, each in ALGORITHMS.items() if not isinstance(each, Iterative)])


def group(rng: Rng, algorithm: str, index: int, *, large: bool = False) -> GroupSpec:
    """A group of an algorithm, which the job's own may be."""
    iterative = isinstance(ALGORITHMS[algorithm], Iterative)
    shapes = MATRICES if algorithm == "muon" else SHAPES
    dtypes = [one(rng, tuple(DTYPES))] if iterative else list(DTYPES)
    count = int(rng.integers(1, 5))
    parameters = []
    for number in range(count):
        shape = LARGE if large and number == count - 1 else one(rng, shapes)
        parameters.append(ParameterSpec(f"{NAMES[number]}{index}", shape, one(rng, dtypes)))
    if not any(parameter.size for parameter in parameters):
        parameters.append(ParameterSpec(f"first{index}", (2, 2), parameters[0].dtype))
    options = dict(group_options(rng, algorithm)) if chance(rng, 0.5) else {}
    return GroupSpec(f"g{index}", options, tuple(parameters), algorithm)


def job(rng: Rng, algorithm: str, *, large: bool = False) -> JobSpec:
    """A job whose groups have this algorithm, or each one of its own."""
    own = algorithm_for(rng, algorithm)
    alone = isinstance(ALGORITHMS[own], Iterative)
    count = 1 if alone else int(rng.integers(1, 4))
    groups = tuple(
        group(rng, algorithm_for(rng, algorithm), index, large=large and not index) for index in range(count)
    )
    defaults = {**options_of(rng, own), **({"max_iter": 3, "line_search_fn": "strong_wolfe"} if alone else {})}
    options = dict(job_options(rng, alone=alone)) if chance(rng, 0.7) else {}
    return JobSpec("job", own, defaults, groups, policy(rng), options)


def policy(rng: Rng) -> Policy:
    """A policy that decides from the state, so that a job goes on from a copy of it as if nothing had been."""
    scales = (None, None, "inverse", Exponential(0.3), Exponential(0.3, 3.0))
    scaled = Async(one(rng, scales), one(rng, (None, None, 1, 4)))
    return scaled if chance(rng, 0.5) else Sync(int(rng.integers(1, 4)))


def job_options(rng: Rng, *, alone: bool = False) -> Iterator[tuple[str, OptionValue]]:
    choices: dict[str, Any] = {
        "clip_norm": (None, 0.1, 1.0, 100.0),
        "clip_norm_type": (2.0, 1.0, float("inf"), 3.0),
        "nonfinite": ("reject", "skip", "zero"),
        "ema_decay": (None, 0.9, 0.5),
        "swa_start": (None, 0, 2, 4),
        "swa_every": (1, 2),
        "reduction": ("mean", "sum"),
    }
    if not alone:
        choices["accumulate"] = (1, 2, 3)
    for name in rng.permutation(list(choices))[: rng.integers(1, 4)]:
        yield str(name), one(rng, choices[str(name)])


def options_of(rng: Rng, algorithm: str) -> dict[str, OptionValue]:
    """Some options of an algorithm, with values that it may well refuse together."""
    declared = [option for option in ALGORITHMS[algorithm].options if chance(rng, 0.3)]
    return {option.name: value(rng, option) for option in declared}


def value(rng: Rng, option: Option) -> OptionValue:
    default = option.default
    if option.choices:
        return one(rng, option.choices)
    if option.kind == "bool":
        return chance(rng, 0.5)
    if option.kind == "int":
        return one(rng, (default, 1, 2, 3))
    if option.kind == "float":
        return one(rng, (default, 0.1, 0.01, 0.5, 0.0))
    if option.kind == "floats" and isinstance(default, tuple) and None not in default:
        return tuple(float(each or 0.0) * one(rng, (1.0, 0.9)) for each in default)
    return default


def group_options(rng: Rng, algorithm: str) -> Iterator[tuple[str, OptionValue]]:
    """Changes of a group's options."""
    fixed = {option.name for option in ALGORITHMS[algorithm].options if option.fixed}
    yield from ((name, each) for name, each in options_of(rng, algorithm).items() if name not in fixed)
    if chance(rng, 0.3):
        yield "lr", one(rng, (0.1, 0.02, 0.5))
    if isinstance(ALGORITHMS[algorithm], Iterative):
        return
    if chance(rng, 0.3):
        yield "lr_schedule", one(rng, (None, *SCHEDULES))
    if chance(rng, 0.15):
        yield "schedules", one(rng, (None, json.dumps({"weight_decay": one(rng, SCHEDULES)})))
    if chance(rng, 0.2):
        yield one(rng, ("clip_norm", "clip_value")), one(rng, (None, 0.1, 1.0))
    if chance(rng, 0.2):
        yield "master_weights", chance(rng, 0.7)
    if chance(rng, 0.3):
        yield "lookahead_steps", one(rng, (None, 1, 2, 3))
    if chance(rng, 0.3):
        rules = [
            {"match": f"{one(rng, NAMES)}*", "lr": one(rng, (0.01, 0.3))},
            {"match": "*", one(rng, ("weight_decay", "lookahead_steps", "master_weights")): 1},
        ]
        yield "rules", json.dumps(rules[: rng.integers(1, 3)]) if chance(rng, 0.8) else None


def numbers(rng: Rng, parameter: ParameterSpec, *, computed: bool) -> np.ndarray[Any, Any]:
    """Weights of a parameter, or a gradient: that is in the dtype of the arithmetic."""
    dtype = DTYPES[COMPUTED[parameter.dtype] if computed else parameter.dtype]
    return (rng.standard_normal(parameter.shape) * 2.0 ** rng.integers(-4, 4)).astype(dtype)


def weights(rng: Rng, group: GroupSpec, index: int) -> list[Frame]:
    """Frames of all weights of a group."""
    return [
        Frame.of(index, parameter.offset, np.ascontiguousarray(numbers(rng, spec, computed=False)).reshape(-1))
        for spec, parameter in zip(group.parameters, lay_out(group.parameters).parameters, strict=True)
    ]
