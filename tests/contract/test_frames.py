"""Our encoding of messages with frames is ordinary protobuf: read and written alike by plain generated code."""

import random

import numpy as np
import pytest
from contract.plain import files
from google.protobuf.message import DecodeError, Message
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from optd_wire import frames as wire
from optd_wire.dtypes import DTYPES
from optd_wire.encodings.registry import BY_NUMBER, exact_for
from optd_wire.errors import FrameLength, MalformedMessage
from optd_wire.frames import Frame, GatheredFrame, decode, encode
from optd_wire.v1 import tensor_pb2
from optd_wire.v1.job_service_pb2 import AddGroupRequest, CreateJobRequest
from optd_wire.v1.state_service_pb2 import ReadStateResponse, WriteStateRequest
from optd_wire.v1.training_service_pb2 import PullResponse, PushRequest, StepRequest, StepResponse

CARRIERS = [
    AddGroupRequest,
    CreateJobRequest,
    PullResponse,
    PushRequest,
    ReadStateResponse,
    StepRequest,
    StepResponse,
    WriteStateRequest,
]

# A Frame's and a carrier's own fields, and numbers that the contract does not have.
UNKNOWN_FIELDS = [
    bytes([18 << 3 & 0x7F | 0x80 | 0, 18 >> 4]) + b"\x07",  # varint
    bytes([19 << 3 & 0x7F | 0x80 | 1, 19 >> 4]) + b"12345678",  # 64 bits
    bytes([20 << 3 & 0x7F | 0x80 | 2, 20 >> 4]) + b"\x03abc",  # bytes
    bytes([21 << 3 & 0x7F | 0x80 | 5, 21 >> 4]) + b"1234",  # 32 bits
]

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
texts = st.text(max_size=8)


@st.composite
def numbers(draw: st.DrawFn) -> np.ndarray:
    """Any bits, NaN with its payload included."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    width = np.dtype(dtype).itemsize
    data = draw(st.binary(max_size=6 * width))
    return np.frombuffer(data[: len(data) // width * width], dtype)


@st.composite
def lossy_frames(draw: st.DrawFn) -> Frame:
    """Any bytes of a fitting length, whether they can be decoded or not."""
    encoding = draw(st.sampled_from([encoding for encoding in BY_NUMBER.values() if encoding.converts]))
    count = draw(st.integers(0, 9))
    payload = draw(st.binary(min_size=encoding.bytes_of(count), max_size=encoding.bytes_of(count)))
    return Frame(draw(uint32), draw(uint64), count, encoding, payload, draw(texts))


exact_frames = st.builds(Frame.of, group=uint32, offset=uint64, values=numbers(), field=texts)
decoded_frames = st.lists(exact_frames | lossy_frames(), max_size=4)


@st.composite
def push_messages(draw: st.DrawFn) -> PushRequest:
    message = PushRequest()
    if draw(st.booleans()):
        message.header.job = draw(texts)
        message.header.worker = draw(texts)
        message.header.sequence = draw(uint64)
        for update in draw(st.lists(texts, max_size=2)):
            message.header.updates.add(group=update).options["lr"].number = 0.5
    return message


def plain_frame(frame: Frame) -> tensor_pb2.Frame:
    return tensor_pb2.Frame(
        group=frame.group,
        offset=frame.offset,
        count=frame.count,
        encoding=frame.encoding.number,
        field=frame.field,
        payload=bytes(frame.payload),
    )


def plain_message(message: Message, frames: list[Frame]) -> Message:
    whole = type(message)()
    whole.CopyFrom(message)
    whole.frames.extend(map(plain_frame, frames))
    return whole


def told(frames: list[Frame]) -> list[tuple[object, ...]]:
    """Frames as they compare: bit by bit."""
    return [(f.group, f.offset, f.field, f.encoding.name, bytes(f.payload), f.stop) for f in frames]


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def delimited(number: int, content: bytes) -> bytes:
    return tag(number, 2) + varint(len(content)) + content


def test_carriers_are_all_messages_with_frames():
    """A message that is to carry frames has them as field 15, and keeps `bytes` last: the encoder counts on it."""
    found = []
    for file in files():
        for name, descriptor in file.DESCRIPTOR.message_types_by_name.items():
            field = descriptor.fields_by_name.get("frames")
            if field is not None:
                found.append(getattr(file, name))
                assert field.number == wire.FRAMES == max(descriptor.fields_by_number)
    assert sorted(found, key=lambda carrier: carrier.DESCRIPTOR.name) == CARRIERS
    payload = tensor_pb2.Frame.DESCRIPTOR.fields_by_name["payload"]
    assert payload.number == max(tensor_pb2.Frame.DESCRIPTOR.fields_by_number)


@given(push_messages(), decoded_frames)
def test_what_plain_protobuf_writes_is_read(message: PushRequest, frames: list[Frame]):
    found, decoded = decode(PushRequest, plain_message(message, frames).SerializeToString())
    assert found == message
    assert told(decoded) == told(frames)


@given(push_messages(), decoded_frames)
def test_what_is_written_is_read_by_plain_protobuf(message: PushRequest, frames: list[Frame]):
    assert PushRequest.FromString(encode(message, frames)) == plain_message(message, frames)


@given(push_messages(), st.lists(st.lists(numbers(), min_size=1, max_size=3), max_size=3), uint64)
def test_what_is_gathered_is_read_by_plain_protobuf(message: PushRequest, pieces: list[list[np.ndarray]], offset: int):
    gathered, joined = [], []
    for group, arrays in enumerate(pieces):
        alike = [array for array in arrays if array.dtype == arrays[0].dtype]
        whole = np.concatenate(alike)
        gathered.append(GatheredFrame(group, offset, whole.size, exact_for(whole.dtype), alike))
        joined.append(Frame.of(group, offset, whole))
    assert PushRequest.FromString(encode(message, gathered)) == plain_message(message, joined)


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
def test_every_carrier_goes_both_ways(carrier: type[Message]):
    frames = [Frame.of(1, 2, np.array([1.5, np.inf])), Frame.of(0, 0, np.array([2], "f4"), "exp_avg")]
    data = encode(carrier(), frames)
    assert data == plain_message(carrier(), frames).SerializeToString()
    assert told(decode(carrier, data)[1]) == told(frames)


@given(push_messages(), decoded_frames, st.randoms(use_true_random=False))
def test_fields_come_in_any_order_among_unknown_ones(message: PushRequest, frames: list[Frame], order: random.Random):
    """As a writer of another version, or of another language, may put them."""

    def shuffled_frame(frame: Frame) -> bytes:
        plain = plain_frame(frame)
        fields = [
            tag(1, 0) + varint(plain.group),
            tag(2, 0) + varint(plain.offset),
            tag(3, 0) + varint(plain.count),
            tag(4, 0) + varint(plain.encoding),
            delimited(5, plain.field.encode()),
            delimited(15, plain.payload),
            *order.sample(UNKNOWN_FIELDS, order.randint(0, 4)),
        ]
        order.shuffle(fields)
        return delimited(15, b"".join(fields))

    fields = [shuffled_frame(frame) for frame in frames]
    fields += order.sample(UNKNOWN_FIELDS, order.randint(0, 4))
    if message.HasField("header"):
        fields.insert(order.randint(0, len(fields)), delimited(1, message.header.SerializeToString()))
    data = b"".join(fields)
    found, decoded = decode(PushRequest, data)
    found.DiscardUnknownFields()
    assert found == message
    assert told(decoded) == told(frames)
    assert [f.payload for f in PushRequest.FromString(data).frames] == [bytes(f.payload) for f in decoded]


def test_a_field_that_is_sent_twice_counts_as_it_does_in_protobuf():
    """The last one of a number, the sum of a message's parts."""
    once = tag(1, 0) + varint(7) + tag(3, 0) + varint(9) + tag(4, 0) + b"\x01" + delimited(15, b"12")
    data = delimited(15, once + tag(3, 0) + varint(1) + delimited(15, b"1234"))
    data += delimited(1, tag(3, 0) + varint(5)) + delimited(1, tag(4, 0) + varint(6))
    message, (frame,) = decode(PushRequest, data)
    plain = PushRequest.FromString(data)
    assert (message.header.epoch, message.header.sequence) == (5, 6)
    assert message.header == plain.header
    assert (frame.group, frame.values.tobytes()) == (plain.frames[0].group, plain.frames[0].payload)


def test_tags_and_lengths_may_be_longer_than_they_need_to_be():
    frame = tag(3, 0) + b"\x81\x00" + tag(4, 0) + b"\x81\x80\x00" + b"\xfa\x00" + b"\x84\x00" + b"abcd"
    data = b"\xfa\x80\x00" + varint(len(frame)) + frame
    assert PushRequest.FromString(data).frames[0].payload == b"abcd"
    assert decode(PushRequest, data)[1][0].values.tobytes() == b"abcd"


def read(data: bytes) -> tuple[PushRequest, list[Frame]] | None:
    """What `decode` gives; None where it refuses. Any other exception is a failure of the test."""
    try:
        return decode(PushRequest, data)
    except (MalformedMessage, FrameLength):
        return None


@given(push_messages(), decoded_frames)
@settings(max_examples=40)
def test_cut_at_any_byte_is_refused_or_shorter(message: PushRequest, frames: list[Frame]):
    whole = encode(message, frames)
    for end in range(len(whole)):
        found = read(whole[:end])
        if found is not None:
            # Where a cut falls between two fields, what is left is a message: the beginning of this one.
            assert told(found[1]) == told(frames)[: len(found[1])]
            assert found[0] in (message, PushRequest())
        elif end:
            with pytest.raises((DecodeError, AssertionError)):
                plain = PushRequest.FromString(whole[:end])
                assert all(BY_NUMBER[f.encoding].fits(f.count, len(f.payload)) for f in plain.frames)


@given(st.binary(max_size=60))
@example(b"\x7a")
@example(b"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x7a\x04\x20\x01\x7a\x00" * 3)
@example(b"\xff" * 20)
@example(b"\x00\x00")
@example(b"\x0b\x0c")
@example(delimited(15, delimited(5, b"\xff\xfe") + b"\x20\x01"))
@example(delimited(1, delimited(1, b"\xc0\x80")))
def test_32_random_bytes_are_refused_or_read_as_protobuf_reads_them(data: bytes):
    agrees_with_protobuf(data)


@given(push_messages(), decoded_frames, st.data())
def test_32_a_changed_byte_is_refused_or_read_as_protobuf_reads_it(
    message: PushRequest, frames: list[Frame], data: st.DataObject
):
    whole = bytearray(encode(message, frames))
    assume(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    agrees_with_protobuf(bytes(whole))


def agrees_with_protobuf(data: bytes) -> None:
    found = read(data)
    if found is None:
        return
    plain = PushRequest.FromString(data)
    assert [(f.group, f.offset, f.field, f.payload) for f in plain.frames] == [
        (f.group, f.offset, f.field, bytes(f.payload)) for f in found[1]
    ]
    plain.ClearField("frames")
    assert plain.SerializeToString(deterministic=True) == found[0].SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("frame", "parts"),
    [
        (tensor_pb2.Frame(count=3, encoding=1, payload=b"12345678"), ["3 elements of 4 bytes", "8 bytes"]),
        (tensor_pb2.Frame(count=1, encoding=2, payload=b"1234"), ["1 elements of 8 bytes", "4 bytes"]),
        (tensor_pb2.Frame(count=2**64 - 1, encoding=1), [str(2**64 - 1), "0 bytes"]),
        (tensor_pb2.Frame(count=1 << 62, encoding=1), [str(1 << 62), "0 bytes"]),
        (tensor_pb2.Frame(encoding=2, payload=b"12345678"), ["0 elements", "8 bytes"]),
    ],
)
def test_a_payload_must_have_the_bytes_that_its_frame_declares(frame: tensor_pb2.Frame, parts: list[str]):
    """Also where count times width is a multiple of 2**64."""
    with pytest.raises(FrameLength) as caught:
        decode(PushRequest, PushRequest(frames=[frame]).SerializeToString())
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("encoding", [0, 7, 17])
def test_an_encoding_that_does_not_exist_is_named(encoding: int):
    frame = tensor_pb2.Frame(count=1, encoding=encoding, payload=b"1234")
    with pytest.raises(MalformedMessage, match=f"no encoding {encoding}"):
        decode(PushRequest, PushRequest(frames=[frame]).SerializeToString())


def test_a_message_that_ends_early_says_so():
    whole = encode(PushRequest(), [Frame.of(0, 0, np.ones(40, "f4"))])
    for end in (1, 2, 5, 20):
        with pytest.raises(MalformedMessage, match=r"the bytes are no PushRequest: .*(ends|end of)"):
            decode(PushRequest, whole[:end])


def test_decoded_numbers_are_views_that_nobody_can_write():
    data = encode(PushRequest(), [Frame.of(0, 0, np.ones(4))])
    (frame,) = decode(PushRequest, data)[1]
    assert np.shares_memory(frame.values, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        frame.values[0] = 2
