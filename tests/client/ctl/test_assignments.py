import pytest

from optd.ctl.assignments import parse
from optd.ctl.exits import BadUsage


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("lr=0.001", 0.001),
        ("lr=1e-3", 0.001),
        ("lr=-1", -1),
        ("lr=+2", 2),
        ("lr= 5 ", 5),
        ("lr=.5", 0.5),
        ("lr=9007199254740993", 9007199254740993),
        ("lr=99999999999999999999", 1e20),
        ("lr=inf", float("inf")),
        ("nesterov=true", True),
        ("nesterov=False", False),
        ("clip=none", None),
        ("betas=0.9,0.99", (0.9, 0.99)),
        ("betas=0.9, 1", (0.9, 1.0)),
        ("betas=(0.9, 0.999)", (0.9, 0.999)),
        ("betas=[0.9,0.999]", (0.9, 0.999)),
        ("betas=0.9,", (0.9,)),
        ("betas=(0.9)", (0.9,)),
        ("betas=()", ()),
        ("lr=abc", "abc"),
        ("lr=0x", "0x"),
        ("betas=0.9,x", "0.9,x"),
        ("betas=,", ","),
        ("adjust_lr_fn=match_rms_adamw", "match_rms_adamw"),
        ("lr_schedule=cosine(steps=10, warmup=2)", "cosine(steps=10, warmup=2)"),
    ],
)
def test_values(given: str, value: object):
    name, _, _ = given.partition("=")
    parsed = parse([given])
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lr"], "'lr' is not NAME=VALUE, such as lr=0.001"),
        (["=1"], "'=1' is not NAME=VALUE, such as lr=0.001"),
        (["l r=1"], "'l r=1' is not NAME=VALUE, such as lr=0.001"),
        (["lr="], "lr= has no value"),
        (["lr=1", "lr=2"], "lr is given twice"),
    ],
)
def test_what_is_wrong(given: list[str], message: str):
    with pytest.raises(BadUsage) as raised:
        parse(given)
    assert str(raised.value) == message
