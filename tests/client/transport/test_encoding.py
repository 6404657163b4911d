"""Names of encodings as `connect` and `step` take them."""

import pytest

from optd import errors
from optd.transport.encoding import MessageEncoding


@pytest.mark.parametrize(
    ("name", "gradients", "weights"),
    [
        ("float32", None, ""),
        ("float64", None, ""),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
        ("int8", "int8", "int8"),
        ("topk", "topk", ""),
        ("topk:0.25", "topk", ""),
        ("topk:1", "topk", ""),
    ],
)
def test_names(name, gradients, weights):
    wire = MessageEncoding.of(name)
    assert (wire.gradients.name if wire.gradients else None, wire.weights) == (gradients, weights)
    assert wire.exact == (gradients is None)


def test_the_fraction_counts():
    assert [MessageEncoding.of(name).gradients.kept(1000) for name in ("topk", "topk:0.25", "topk:1e-3")] == [
        10,
        250,
        1,
    ]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "float8",
            errors.UnknownEncoding,
            "no encoding 'float8'; encodings are float32, float64, bfloat16, float16, int8, topk",
        ),
        ("", errors.UnknownEncoding, "no encoding ''"),
        ("topk:0", errors.InvalidRequest, "topk:FRACTION must have a fraction in (0, 1], got 'topk:0'"),
        ("topk:2", errors.InvalidRequest, "topk:FRACTION must have a fraction in (0, 1], got 'topk:2'"),
        ("topk:nan", errors.InvalidRequest, "topk:FRACTION must have a fraction in (0, 1], got 'topk:nan'"),
        ("topk:", errors.InvalidRequest, "topk:FRACTION must have a fraction in (0, 1], got 'topk:'"),
        ("topk:1%", errors.InvalidRequest, "topk:FRACTION must have a fraction in (0, 1], got 'topk:1%'"),
        (
            "int8:0.5",
            errors.InvalidRequest,
            "encoding int8 takes no fraction, got 'int8:0.5'; only topk does, and bfloat16 'stochastic'",
        ),
    ],
)
def test_errors_say_what_to_write(name, error, message):
    with pytest.raises(error) as caught:
        MessageEncoding.of(name)
    assert message in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 8, b"int8"])
def test_what_is_no_name(wrong):
    with pytest.raises(errors.InvalidRequest, match=r"an encoding must be given by name, as 'bfloat16', got"):
        MessageEncoding.of(wrong)
