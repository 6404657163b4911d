"""Every encoding: what comes back is as near as its docstring says, and what is no payload is refused."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from contract.encoded import ALL, ALL_LOSSY, FLOATS, HALVES, LOSSY, MOST, back, numbers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optd_wire.dtypes import DTYPES
from optd_wire.encodings import bfloat16
from optd_wire.encodings.base import CHUNK, Encoding
from optd_wire.encodings.int8 import BLOCK
from optd_wire.encodings.registry import BY_NUMBER, ENCODINGS, encoding_for, encoding_named, exact_for
from optd_wire.encodings.topk import TopK
from optd_wire.errors import EncodingOverflow, FrameLength, InvalidRequest, MalformedMessage, UnknownEncoding
from optd_wire.frames import Frame, GatheredFrame, decode, encode
from optd_wire.v1 import tensor_pb2
from optd_wire.v1.training_service_pb2 import PushRequest

# What each docstring says: how far an element may be off, given all of its frame.


def half_bound(relative: float, absolute: float) -> Callable[[np.ndarray], np.ndarray]:
    # float64 numbers are rounded to float32 first: 2**-24 of them, 2**-150 next to zero.
    return lambda values: np.maximum(np.abs(values) * (relative * (1 + 2**-20)), absolute * (1 + 2**-14))


def int8_bound(values: np.ndarray) -> np.ndarray:
    starts = np.arange(0, values.size, BLOCK)
    if not values.size:
        return values
    largest = np.maximum.reduceat(np.abs(values), starts)
    return np.repeat(np.maximum(largest / 253, 2.0**-142), BLOCK)[: values.size]


@dataclass(frozen=True)
class Case:
    most: float
    bound: Callable[[np.ndarray], np.ndarray]


CASES = {
    "bfloat16": Case(float.fromhex("0x1.fep127"), half_bound(2**-8, 2**-134)),
    "float16": Case(65504.0, half_bound(2**-11, 2**-25)),
    "int8": Case(MOST, int8_bound),
}


def test_registry_and_contract_agree():
    assert {f"ENCODING_{name.upper()}": encoding.number for name, encoding in ENCODINGS.items()} == {
        name: number for name, number in tensor_pb2.Encoding.items() if number
    }
    assert all(BY_NUMBER[encoding.number] is encoding for encoding in ENCODINGS.values())
    assert {name for name, encoding in ENCODINGS.items() if not encoding.converts} == set(FLOATS)
    assert {name for name, encoding in ENCODINGS.items() if encoding.dtype is not None} == set(DTYPES)
    assert set(CASES) == {encoding.name for encoding in LOSSY} - {"topk"}
    assert [encoding.name for encoding in LOSSY if not encoding.carries_weights] == ["topk"]
    with pytest.raises(UnknownEncoding, match="'bf16'; encodings are float32, float64, bfloat16"):
        encoding_named("bf16")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_encoding_of_a_dtype_changes_no_bit(dtype: np.dtype):
    @given(st.binary(max_size=80))
    def unchanged(data: bytes) -> None:
        values = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
        encoding = exact_for(dtype)
        assert [each.name for each in ENCODINGS.values() if each.keeps(dtype)] == [encoding.name]
        assert back(encoding, values).tobytes() == values.tobytes()
        payload = np.asarray(encoding.encode(values))
        assert payload.tobytes() == values.tobytes()
        assert not values.size or np.shares_memory(payload, values)

    unchanged()


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_what_comes_back_is_within_the_bound(name: str, dtype: np.dtype):
    case = CASES[name]

    @given(numbers(dtype, case.most))
    @settings(max_examples=60, deadline=None)
    @example(np.full(BLOCK + 1, case.most, dtype))
    @example(np.array([case.most, -case.most, 1e-45, -0.0, 0.0, 1.0], dtype))
    @example(np.array([60 * 1.4e-45, 1.4e-45], dtype))
    def within(values: np.ndarray) -> None:
        found = back(ENCODINGS[name], values)
        assert found.dtype == dtype
        assert np.isfinite(found).all()
        wide = values.astype("f8")
        assert (np.abs(found.astype("f8") - wide) <= case.bound(wide)).all()

    within()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@ALL
def test_what_is_not_finite_stays_so(encoding: Encoding, dtype: np.dtype):
    if not encoding.converts and not encoding.keeps(dtype):
        return
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        values = np.linspace(-2, 2, 3 * BLOCK).astype(dtype)
        values[BLOCK + 3] = bad
        found = back(encoding, values)
        assert not np.isfinite(found[BLOCK + 3])
        assert np.isfinite(found[:BLOCK]).all()
        assert np.isfinite(found[2 * BLOCK :]).all()


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("float16", 65520.0, ["float16", "65504", "65520"]),
        ("float16", 1e30, ["float16", "65504"]),
        ("bfloat16", MOST, ["bfloat16", "3.38953", "3.40282"]),
        ("bfloat16", 1e300, ["bfloat16", "3.40282", "1e+300"]),
        ("float16", 1e300, ["float16", "1e+300"]),
        ("int8", 1e300, ["int8", "3.40282", "1e+300"]),
        ("topk", -1e300, ["topk", "3.40282", "1e+300"]),
    ],
)
def test_a_finite_number_that_does_not_fit_is_named(name: str, value: float, parts: list[str]):
    values = np.zeros(CHUNK + 9, "f8" if value > MOST or value < -MOST else "f4")
    values[-3] = value
    values[5] = np.inf
    with pytest.raises(EncodingOverflow) as caught:
        ENCODINGS[name].encode(values)
    assert all(part in str(caught.value) for part in parts)


def test_the_largest_numbers_that_fit_do():
    below = np.nextafter(np.float32(65520), np.float32(0))
    assert back(ENCODINGS["float16"], np.array([below], "f4"))[0] == 65504
    below = np.array(bfloat16.OVERFLOW - 1, "u4").view("f4")
    assert back(ENCODINGS["bfloat16"], below.reshape(1))[0] == float.fromhex("0x1.fep127")
    assert np.isfinite(back(ENCODINGS["int8"], np.array([MOST, -MOST, 1], "f4"))).all()


# Numbers of 16 bits


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@ALL_LOSSY
def test_numbers_of_16_bits_come_back_as_if_they_were_float32(encoding: Encoding, dtype: np.dtype):
    @given(numbers(np.dtype("f4"), 60000.0))
    @settings(max_examples=30, deadline=None)
    def alike(values: np.ndarray) -> None:
        narrow = values.astype(dtype)
        wide = back(encoding, narrow.astype("f4"))
        found = back(encoding, narrow)
        assert found.dtype == dtype
        if encoding.keeps(dtype):
            assert found.tobytes() == narrow.tobytes()
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found.astype("f4"), wide.astype(dtype).astype("f4"))

    alike()


def test_numbers_of_16_bits_may_be_longer_than_a_chunk_and_are_checked():
    values = np.linspace(-9, 9, CHUNK + 7).astype(HALVES["bfloat16"])
    for name in ("float16", "int8", "topk"):
        assert back(ENCODINGS[name], values).dtype == values.dtype
    values[-1] = 1e38
    with pytest.raises(EncodingOverflow, match="float16"):
        ENCODINGS["float16"].encode(values)


def test_how_numbers_of_a_dtype_travel():
    names = {
        (dtype, wanted): encoding_for(DTYPES[dtype], None if wanted is None else ENCODINGS[wanted]).name
        for dtype in DTYPES
        for wanted in (None, *ENCODINGS)
    }
    exact = {pair for pair, name in names.items() if pair[0] == name}
    others = {(dtype, wanted) for dtype in DTYPES for wanted in ("int8", "topk")}
    others |= {(dtype, wanted) for dtype in FLOATS for wanted in HALVES}
    assert exact == names.keys() - others
    assert all(names[pair] == pair[1] for pair in others)


# topk


@given(numbers(FLOATS["float32"], special=True), st.floats(0.001, 1))
def test_topk_sends_the_largest_and_nothing_else(values: np.ndarray, fraction: float):
    encoding = TopK(fraction)
    found = back(encoding, values)
    size = np.where(np.isnan(values), np.inf, np.abs(values))
    kept = encoding.kept(values.size)
    assert kept == -(-Fraction(fraction) * values.size // 1) or abs(kept - fraction * values.size) <= 1
    sent = np.frombuffer(np.asarray(encoding.encode(values))[: 4 * kept].tobytes(), "<u4")
    assert sent.size == kept
    assert (np.diff(sent.astype("i8")) > 0).all()
    left = np.ones(values.size, bool)
    left[sent] = False
    np.testing.assert_array_equal(found[sent], values[sent])
    assert not found[left].any()
    if kept and left.any():
        assert size[sent].min() >= size[left].max()


def test_topk_breaks_ties_in_order_and_takes_nan_first():
    values = np.array([1, -1, 1, np.nan, 1], "f4")
    np.testing.assert_array_equal(back(TopK(0.4), values), [1, 0, 0, np.nan, 0])
    assert np.asarray(TopK(1).encode(values)).nbytes == 40


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan")])
def test_a_fraction_must_be_one(fraction: float):
    with pytest.raises(InvalidRequest, match=r"topk: fraction must be in \(0, 1\], got"):
        TopK(fraction)


def pairs(places: list[int], values: list[float]) -> bytes:
    return np.array(places, "<u4").tobytes() + np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("payload", "count", "says"),
    [
        (pairs([0, 4], [1, 2]), 4, r"must be in \[0, 4\), got 4"),
        (pairs([2**32 - 1], [1]), 4, "got 4294967295"),
        (pairs([2, 1], [1, 2]), 4, "got 2 before 1"),
        (pairs([2, 2], [1, 2]), 4, "got 2 before 2"),
    ],
)
def test_topk_with_wrong_places_writes_nothing(payload: bytes, count: int, says: str):
    frame = tensor_pb2.Frame(count=count, encoding=tensor_pb2.ENCODING_TOPK, payload=payload)
    (sent,) = decode(PushRequest, PushRequest(frames=[frame]).SerializeToString())[1]
    out = np.full(count, 7, "f4")
    with pytest.raises(MalformedMessage, match=says):
        sent.check()
    with pytest.raises(MalformedMessage, match=says):
        sent.decode_into(out)
    assert (out == 7).all()


# Payloads of the wrong length


@pytest.mark.parametrize(
    ("encoding", "count", "length"),
    [
        (3, 2, 3),
        (3, 2**63, 0),
        (4, 1, 4),
        (4, 2**64 - 1, 2),
        (5, 1, 1),
        (5, 257, 257 + 4),
        (5, 2**64 - 1, 8),
        (6, 4, 12),
        (6, 1, 16),
        (6, 0, 8),
    ],
)
def test_31_a_payload_of_the_wrong_length_is_refused_at_once(encoding: int, count: int, length: int):
    frame = tensor_pb2.Frame(group=5, count=count, encoding=encoding, payload=bytes(length))
    data = PushRequest(frames=[frame]).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(FrameLength, match=f"group 5 declares {count} elements of .*payload has {length} bytes"):
            decode(PushRequest, data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()


def test_31_a_huge_count_of_zeros_costs_nothing_until_there_is_room_for_it():
    frame = tensor_pb2.Frame(count=2**62, encoding=tensor_pb2.ENCODING_TOPK)
    (sent,) = decode(PushRequest, PushRequest(frames=[frame]).SerializeToString())[1]
    sent.check()
    assert (sent.count, sent.stop, len(sent.payload)) == (2**62, 2**62, 0)


@given(st.sampled_from(LOSSY), st.integers(0, 70), st.binary(max_size=200))
@settings(deadline=None)
def test_31_any_payload_is_refused_or_decoded(encoding: Encoding, count: int, payload: bytes):
    plain = tensor_pb2.Frame(count=count, encoding=encoding.number, payload=payload)
    out = np.full(count, 7, "f4")
    try:
        (frame,) = decode(PushRequest, PushRequest(frames=[plain]).SerializeToString())[1]
        assert bytes(frame.payload) == payload
        frame.check()
    except (FrameLength, MalformedMessage):
        return
    frame.decode_into(out)
    np.testing.assert_array_equal(out, frame.decoded())


# In messages


def test_bfloat16_of_plain_stubs_is_read():
    """As a program in any language writes it: the upper halves of float32 numbers."""
    values = np.array([1.0, -2.5, 0.15625, np.inf], "<f4")
    payload = b"".join(value.tobytes()[2:] for value in values)
    frame = tensor_pb2.Frame(group=1, offset=3, count=4, encoding=tensor_pb2.ENCODING_BFLOAT16, payload=payload)
    (found,) = decode(PushRequest, PushRequest(frames=[frame]).SerializeToString())[1]
    assert (found.group, found.offset, found.stop, found.encoding.name) == (1, 3, 7, "bfloat16")
    for dtype in FLOATS.values():
        out = np.zeros(4, dtype)
        found.decode_into(out)
        assert out.tolist() == values.tolist()
    assert found.decoded().tolist() == values.tolist()
    assert found.values.dtype == "bfloat16"
    with pytest.raises(TypeError, match="int8"):
        _ = Frame(0, 0, 4, ENCODINGS["int8"], bytes(8)).values


@ALL_LOSSY
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_plain_stubs_read_what_is_gathered(encoding: Encoding, dtype: np.dtype):
    arrays = [np.linspace(-1, 1, n).astype(dtype) for n in (3, 0, 300, 1)]
    sent = GatheredFrame(2, 9, 304, encoding, arrays, "gradient")
    (frame,) = PushRequest.FromString(encode(PushRequest(last=True), [sent])).frames
    assert (frame.group, frame.offset, frame.count, frame.encoding, frame.field) == (
        2,
        9,
        304,
        encoding.number,
        "gradient",
    )
    assert frame.payload == np.asarray(encoding.encode(np.concatenate(arrays))).tobytes()
    assert len(frame.payload) == encoding.bytes_of(304)


def test_int8_is_laid_out_as_the_contract_says():
    values = np.full(300, 0.5, "f4")
    values[256:] = -127
    payload = np.asarray(ENCODINGS["int8"].encode(values)).tobytes()
    scales, integers = np.frombuffer(payload[:8], "<f4"), np.frombuffer(payload[8:], "i1")
    np.testing.assert_allclose(scales, [0.5 / 127, 1], rtol=1e-6)
    assert set(integers[:256].tolist()) == {127}
    assert set(integers[256:].tolist()) == {-127}


def test_a_frame_of_any_encoding_can_be_sent_on():
    for encoding in LOSSY:
        values = np.linspace(-1, 1, 40, dtype="f4")
        data = encode(PushRequest(), [Frame(0, 0, 40, encoding, encoding.encode(values))])
        (found,) = decode(PushRequest, data)[1]
        assert encode(PushRequest(), [found]) == data
