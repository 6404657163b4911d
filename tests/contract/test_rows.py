"""Row frames: what is written here plain protobuf reads, and the other way round; what does not fit is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optd_wire.encodings.registry import BY_NUMBER, exact_for
from optd_wire.errors import MalformedMessage, RowFrameLength, RowOutOfRange
from optd_wire.row_frames import MAX_ROW_FRAMES, RowFrame, check_ids, decode_rows, encode_rows
from optd_wire.v1 import tensor_pb2
from optd_wire.v1.training_service_pb2 import PullRowsResponse
from optd_wire.wire_format import varint

NUMBERS = {1: "<f4", 2: "<f8"}


@st.composite
def row_frames(draw: st.DrawFn) -> RowFrame:
    encoding = BY_NUMBER[draw(st.sampled_from(sorted(NUMBERS)))]
    ids = np.array(draw(st.lists(st.integers(0, 2**64 - 1), max_size=4)), "<u8")
    values = np.arange(ids.size * draw(st.integers(0, 3)), dtype=encoding.dtype)
    small = st.integers(0, 2**32 - 1)
    return RowFrame(draw(small), draw(small), ids.size, encoding, ids, values, draw(small))


def plain(frame: RowFrame) -> tensor_pb2.RowFrame:
    return tensor_pb2.RowFrame(
        group=frame.group,
        parameter=frame.parameter,
        count=frame.count,
        encoding=frame.encoding.number,
        ids=frame.ids.tobytes(),
        payload=bytes(frame.payload),
        sparse_dims=frame.sparse_dims,
    )


@given(st.lists(row_frames(), max_size=3), st.integers(0, 2**64 - 1))
def test_our_bytes_are_those_of_plain_protobuf(frames: list[RowFrame], version: int):
    message = PullRowsResponse()
    message.version.version = version
    data = encode_rows(message, frames)
    expected = PullRowsResponse(version=message.version, rows=[plain(frame) for frame in frames])
    assert data == expected.SerializeToString()
    read, found = decode_rows(PullRowsResponse, data)
    assert read == message
    assert [plain(frame) for frame in found] == list(expected.rows)


@given(row_frames())
def test_fields_may_come_in_any_order_among_unknown_ones(frame: RowFrame):
    whole = plain(frame)
    head, ids, payload = tensor_pb2.RowFrame(), tensor_pb2.RowFrame(ids=whole.ids), bytes(frame.payload)
    head.CopyFrom(whole)
    head.ClearField("ids")
    head.ClearField("payload")
    unknown = b"\x92\x01\x03abc"  # field 18
    last = tensor_pb2.RowFrame(payload=payload).SerializeToString()
    body = last + unknown + ids.SerializeToString() + head.SerializeToString()
    _, (found,) = decode_rows(PullRowsResponse, b"\x72" + varint(len(body)) + body)
    assert plain(found) == whole


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes):
    for given_bytes in (data, b"\x72" + len(data).to_bytes() + data):
        try:
            decode_rows(PullRowsResponse, given_bytes)
        except MalformedMessage as error:
            assert error.values["message"] in ("PullRowsResponse", "RowFrame")


def test_a_message_has_a_bounded_number_of_row_frames():
    frame = tensor_pb2.RowFrame(encoding=1)
    data = PullRowsResponse(rows=[frame] * MAX_ROW_FRAMES).SerializeToString()
    assert len(decode_rows(PullRowsResponse, data)[1]) == MAX_ROW_FRAMES
    with pytest.raises(MalformedMessage, match=f"more than {MAX_ROW_FRAMES}"):
        decode_rows(PullRowsResponse, data + PullRowsResponse(rows=[frame]).SerializeToString())


def rows_of(ids: list[int], count: int, elements: int) -> RowFrame:
    values = np.zeros(elements, "<f4")
    return RowFrame(0, 0, count, exact_for(values.dtype), np.array(ids, "<u8"), values)


def test_what_fits_is_decoded():
    frame = rows_of([3, 0], 2, 6)
    frame.check("w", 4, 3)
    out = np.ones((2, 3))
    frame.decode_into(out)
    assert not out.any()


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (rows_of([0], 2, 6), RowFrameLength, "'w' declares 2 rows, so that its ids must have 16 bytes, but it has 8"),
        (rows_of([0, 1], 2, 5), RowFrameLength, "its payload must have 6 elements of .*, but it has 20 bytes"),
        (rows_of([0, 4], 2, 6), RowOutOfRange, r"rows of parameter 'w' must be in \[0, 4\), got 4"),
        (rows_of([2**64 - 1, 0], 2, 6), RowOutOfRange, "got 18446744073709551615"),
    ],
)
def test_what_does_not_fit_is_refused(frame: RowFrame, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        frame.check("w", 4, 3)


def test_ids_of_any_integers_are_checked():
    check_ids(np.array([0, 127], "i1"), "w", 10_000_000)
    with pytest.raises(RowOutOfRange, match="got -1"):
        check_ids(np.array([0, -1], "i8"), "w", 3)
