import numpy as np
import pytest

from optd_server.store.extents import extent_of, in_compute_dtype
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.dtypes import DTYPES
from optd_wire.encodings.registry import ENCODINGS
from optd_wire.encodings.topk import TopK
from optd_wire.errors import (
    DtypeMismatch,
    FrameOutOfRange,
    FrameOverlap,
    IncompleteParameter,
    InvalidRequest,
    MalformedMessage,
)
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.values import GRADIENT, ParameterSpec

LAYOUT = lay_out(
    [
        ParameterSpec("a", (2, 3), "float32"),
        ParameterSpec("x", (4,), "float64"),
        ParameterSpec("empty", (0, 7), "float32"),
        ParameterSpec("b", (), "float32"),
    ]
)


def sink():
    return FrameSink(FlatBuffers([extent_of([LAYOUT])]), "gradient", ["g"])


def f4(*values):
    return np.array(values, "f4")


def test_layout_sorts_by_dtype_then_as_listed():
    assert [p.offset for p in LAYOUT.parameters] == [0, 7, 6, 6]
    assert [(s.dtype, s.offset, s.count, s.members) for s in LAYOUT.segments] == [
        ("float32", 0, 7, (0, 2, 3)),
        ("float64", 7, 4, (1,)),
    ]
    assert LAYOUT.count == 11


def test_frames_in_any_order_and_pieces():
    target = sink()
    target.write_all([Frame.of(0, 7, np.arange(4.0))])
    target.write_all([Frame.of(0, 4, f4(4, 5, 6))])
    target.write_all([Frame.of(0, 0, f4(0, 1, 2, 3))])
    assert target.buffers.arrays[0][0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert target.buffers.arrays[0][1].tolist() == [0, 1, 2, 3]
    assert [present.tolist() for present in target.ledger.presence()[0]] == [[True, True, True], [True]]
    target.ledger.require_all()


@pytest.mark.parametrize(
    ("frame", "error", "says"),
    [
        (Frame.of(1, 0, f4(1)), InvalidRequest, "group 1; it must be in [0, 1)"),
        (
            Frame.of(0, 6, f4(1, 2)),
            FrameOutOfRange,
            "[6, 8) of group 0; its ranges are [0, 7) float32, [7, 11) float64",
        ),
        (Frame.of(0, 11, f4(1)), FrameOutOfRange, "[11, 12)"),
        (Frame.of(0, 2**63, f4(1)), FrameOutOfRange, "9223372036854775808"),
        (Frame.of(0, 0, np.zeros(6)), DtypeMismatch, "parameter 'a' must have dtype float32, got float64"),
        (Frame.of(0, 6, np.zeros(1)), DtypeMismatch, "parameter 'b'"),
        (Frame.of(0, 0, f4(1), "exp_avg"), InvalidRequest, "exp_avg"),
        (Frame(0, 6, 2, ENCODINGS["bfloat16"], bytes(4)), FrameOutOfRange, "[6, 8)"),
        (Frame(0, 0, 2, ENCODINGS["topk"], b"\2\0\0\0" + bytes(4)), MalformedMessage, "must be in [0, 2), got 2"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_writes_nothing(frame, error, says):
    target = sink()
    target.buffers.arrays[0][0][:] = 7
    with pytest.raises(error) as caught:
        target.write_all([frame])
    assert says in str(caught.value)
    assert (target.buffers.arrays[0][0] == 7).all()
    assert not any(present.any() for present in target.ledger.presence()[0])


def test_overlap_and_partial_parameters_are_named():
    target = sink()
    target.write_all([Frame.of(0, 0, f4(0, 1, 2, 3))])
    with pytest.raises(FrameOverlap, match="parameter 'a' is sent twice, at element 3 of group 'g'"):
        target.write_all([Frame.of(0, 3, f4(9, 9))])
    assert target.buffers.arrays[0][0][3] == 3
    with pytest.raises(IncompleteParameter, match="gradient of parameter 'a' covers 4 of its 6 elements"):
        target.ledger.presence()


def test_what_is_missing_is_named():
    target = sink()
    target.write_all([Frame.of(0, 0, f4(*range(6)))])
    with pytest.raises(IncompleteParameter, match="'b' covers 0 of its 1"):
        target.ledger.require_all()


@pytest.mark.parametrize("name", ["bfloat16", "float16", "int8", "topk"])
def test_lossy_frames_go_into_any_dtype(name):
    encoding = TopK(1) if name == "topk" else ENCODINGS[name]
    target = sink()
    target.write_all([Frame(0, 0, 7, encoding, encoding.encode(f4(*range(7))))])
    target.write_all([Frame(0, 7, 4, encoding, encoding.encode(np.arange(4.0)))])
    np.testing.assert_allclose(target.buffers.arrays[0][0], range(7), atol=0.03)
    np.testing.assert_allclose(target.buffers.arrays[0][1], range(4), atol=0.03)
    target.ledger.require_all()


def test_weights_do_not_come_in_an_encoding_for_gradients():
    target = FrameSink(FlatBuffers([extent_of([LAYOUT])]), "weights", ["g"])
    target.write_all([Frame(0, 0, 1, ENCODINGS["bfloat16"], b"\x80\x3f")])
    with pytest.raises(InvalidRequest, match="weights cannot be sent in encoding topk"):
        target.write_all([Frame(0, 1, 1, ENCODINGS["topk"], b"")])
    assert target.buffers.arrays[0][0].tolist() == [1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_16_bits_may_come_in_float32_and_weights_may_not(dtype):
    layout = lay_out([ParameterSpec("a", (4,), dtype), ParameterSpec("b", (2,), "float64")])
    extents = [extent_of([layout])]
    assert layout.segments[1].offset == 2
    weights = FrameSink(FlatBuffers(extents), "weights", ["g"])
    gradient = FrameSink(FlatBuffers(in_compute_dtype(extents)), GRADIENT, ["g"])
    with pytest.raises(DtypeMismatch, match=f"weights of parameter 'a' must have dtype {dtype}, got float32"):
        weights.write_all([Frame.of(0, 2, f4(1))])
    with pytest.raises(DtypeMismatch, match="gradient of parameter 'a' must have dtype float32, got float64"):
        gradient.write_all([Frame.of(0, 2, np.ones(1))])
    gradient.write_all([Frame.of(0, 2, f4(1 + 2**-20)), Frame.of(0, 3, np.ones(1, DTYPES[dtype]))])
    for name in ("float16", "bfloat16"):
        for target in (weights, gradient):
            target.write_all([Frame.of(0, 4 + (name == "bfloat16"), np.full(1, 1.5, DTYPES[name]))])
    assert gradient.buffers.arrays[0][1].tolist() == [1 + 2**-20, 1, 1.5, 1.5]
    assert weights.buffers.arrays[0][1].tolist() == [0, 0, 1.5, 1.5]
