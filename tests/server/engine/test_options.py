"""Every invalid value of every option of every algorithm, and the message that it gets, from the declarations."""

import math
from collections.abc import Iterator

import pytest

from optd_server.engine.options.resolution import resolve_job_options, resolve_options
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.group_options import GROUP_OPTIONS
from optd_server.optim.job_options import JOB
from optd_server.optim.option import Option, Range
from optd_wire.errors import InvalidOption, OptdError, OptionOutOfRange, UnknownOption


def outside(bounds: Range) -> Iterator[float]:
    """Numbers just out of a range, and what is no number of any."""
    for bound, is_open, outward in (
        (bounds.low, bounds.low_open, -math.inf),
        (bounds.high, bounds.high_open, math.inf),
    ):
        if bound is not None:
            yield bound - math.copysign(1, -outward)
            yield float(bound) if is_open else math.nextafter(bound, outward)
    yield math.nan
    if not bounds.infinite:
        yield from (math.inf, -math.inf)


def shown(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value).removesuffix(".0")


def invalid(option: Option) -> Iterator[tuple[object, str]]:
    """Values, and the message's words after "must be"."""
    match option.kind:
        case "bool":
            yield from ((2, "true or false, got 2"), ("yes", "true or false, got 'yes'"))
        case "float" | "int":
            for value in outside(option.range):
                if option.kind == "float" or float(value).is_integer():
                    yield value, f"in {option.range}, got {shown(value)}"
            for other in ("0.1", True) if option.nullable else ("0.1", True, None):
                yield other, f"{'a number' if option.kind == 'float' else 'a whole number'}, got {shown(other)}"
        case "text" if option.choices:
            choices = ", ".join(map(repr, option.choices))
            yield from (("never", f"one of {choices}, got 'never'"), (1, "a text, got 1"))


def invalid_entries(option: Option) -> Iterator[tuple[object, str]]:
    """As `invalid`, for options of several numbers: one of them wrong, or another number of them."""
    default = option.default
    assert isinstance(default, tuple)
    for i, bounds in enumerate(option.entries):
        for value in outside(bounds):
            given = (*default[:i], value, *default[i + 1 :])
            yield given, f"{option.name}[{i}] must be in {bounds}, got {shown(value)}"
    yield default[:1], f"{option.name} must be {len(default)} numbers, got ({shown(default[0])},)"
    yield 0.5, f"{option.name} must be {len(default)} numbers, got 0.5"


CASES = [
    (name, option.name, value, f"{name}: {words}")
    for name, algorithm in ALGORITHMS.items()
    for option in algorithm.options
    for value, words in (
        invalid_entries(option)
        if option.kind == "floats" and option.entries
        else ((value, f"{option.name} must be {words}") for value, words in invalid(option))
    )
]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_invalid_value_is_named_with_its_bound(name: str) -> None:
    for _, option, value, message in (case for case in CASES if case[0] == name):
        with pytest.raises(OptdError) as caught:
            resolve_options(ALGORITHMS[name], {option: value})
        assert str(caught.value) == message
        assert type(caught.value) is (OptionOutOfRange if "must be in " in message else InvalidOption)


@pytest.mark.parametrize("option", JOB.options, ids=lambda option: option.name)
def test_an_invalid_value_of_a_job_is_named_with_its_bound(option: Option) -> None:
    cases = list(invalid(option))
    assert cases
    for value, words in cases:
        with pytest.raises(OptdError) as caught:
            resolve_job_options({option.name: value})
        assert str(caught.value) == f"job: {option.name} must be {words}"


@pytest.mark.parametrize("option", [o for o in GROUP_OPTIONS if o.kind != "text"], ids=lambda option: option.name)
def test_an_invalid_value_that_every_group_may_have_is_named_with_its_bound(option: Option) -> None:
    for value, words in invalid(option):
        with pytest.raises(OptdError) as caught:
            resolve_options(ALGORITHMS["adam"], {option.name: value})
        assert str(caught.value) == f"adam: {option.name} must be {words}"


def test_what_people_get_wrong_about_jobs() -> None:
    with pytest.raises(OptionOutOfRange, match=r"^job: clip_norm must be in \(0, inf\), got -1$"):
        resolve_job_options({"clip_norm": -1})
    with pytest.raises(UnknownOption, match=r"job.*clip_nrom.*did you mean 'clip_norm'"):
        resolve_job_options({"clip_nrom": 1.0})


def test_the_table_has_what_people_get_wrong() -> None:
    messages = {message for *_, message in CASES}
    assert {
        "adam: betas[0] must be in [0, 1), got 1",
        "adagrad: lr_decay must be in [0, inf), got -1",
        "rprop: etas[0] must be in (0, 1), got 0",
        "rprop: etas[1] must be in (1, inf), got 1",
        "rprop: step_sizes[1] must be in [-inf, inf], got nan",
        "sgd: nesterov must be true or false, got 2",
    } <= messages
