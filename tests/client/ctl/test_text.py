import math

import pytest

from optd.ctl import text
from optd.ctl.assignments import parse
from optd_wire.values import Async, Sync


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (text.count(1234567), "1,234,567"),
        (text.number(0.0123456), "0.01235"),
        (text.number(math.nan), "-"),
        (text.span(-1.23456, 2), "-1.23 .. 2"),
        (text.span(math.nan, math.nan), "-"),
        (text.size(0), "0 B"),
        (text.size(1023), "1023 B"),
        (text.size(96000), "93.8 KiB"),
        (text.size(16 << 20), "16.0 MiB"),
        (text.size(5 << 50), "5120.0 TiB"),
        (text.duration(0), "0 s"),
        (text.duration(-3), "0 s"),
        (text.duration(59.9), "59 s"),
        (text.duration(60), "1 min"),
        (text.duration(3 * 3600 + 12 * 60 + 5), "3 h 12 min"),
        (text.duration(86400 + 59), "1 d"),
        (text.policy(Async()), "async"),
        (text.policy(Sync(workers=4)), "sync of 4"),
        (text.shape(()), "scalar"),
        (text.shape((64, 32)), "64x32"),
        (text.steps(7, 7), "7"),
        (text.steps(0, 1000), "0-1,000"),
        (text.histogram(()), ""),
        (text.histogram((0, 1, 4, 8, 1000)), " ▁▁▁█"),
        (text.printable("a\x1b[31mred\r\nb é"), "a\\x1b[31mred\\r b é"),
    ],
)
def test_words(said: str, expected: str):
    assert said == expected


@pytest.mark.parametrize("value", [None, True, False, 3, 0.1, 1e-8, 0.0, (0.9, 0.999), (0.5, 1.0)])
def test_what_is_shown_of_an_option_can_be_set(value: object):
    (parsed,) = parse([f"name={text.option(value)}"]).values()
    assert parsed == value


def test_lr_comes_first():
    assert text.in_order({"betas": 1, "amsgrad": 2, "lr": 3}) == ["lr", "amsgrad", "betas"]
