"""Error feedback: nothing of a gradient is lost, nothing comes twice, whatever becomes of a push."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd.exchange.feedback import ErrorFeedback
from optd.params.flat_view import FlatView
from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.encodings.registry import ENCODINGS
from optd_wire.encodings.topk import TopK
from optd_wire.errors import EncodingOverflow
from optd_wire.frames import decode, encode
from optd_wire.v1.training_service_pb2 import PushRequest
from optd_wire.values import ParameterSpec

SHAPES = [("a", (3, 4), "float32"), ("x", (5,), "float64"), ("empty", (0,), "float32"), ("b", (7,), "float32")]
VIEW = FlatView([[ParameterSpec(*shape) for shape in SHAPES], [ParameterSpec("c", (2,), "float32")]])
ENCODED = [TopK(0.25), ENCODINGS["int8"], ENCODINGS["bfloat16"]]


def gradients(seed, missing=()):
    rng = np.random.default_rng(seed)
    rows = [[rng.normal(size=p.shape).astype(p.dtype) for p in layout.parameters] for layout in VIEW.layouts]
    for group, place in missing:
        rows[group][place] = None
    return rows


def messages(source):
    return [encode(PushRequest(), batch) for batch in source()]


def received(source):
    """What a server has of a push: flat arrays by group and segment, zeros where nothing was sent."""
    buffers = FlatBuffers([extent_of(VIEW.layouts)])
    sink = FrameSink(buffers, "gradient", ["g0", "g1"])
    for data in messages(source):
        sink.write_all(decode(PushRequest, data)[1])
    return [array.copy() for row in buffers.arrays for array in row]


def flat(rows):
    buffers = FlatBuffers([extent_of(VIEW.layouts)])
    sink = FrameSink(buffers, "gradient", ["g0", "g1"])
    for batch in VIEW.source(rows)():
        sink.write_all(decode(PushRequest, encode(PushRequest(), batch))[1])
    return buffers.arrays[0] + buffers.arrays[1]


def residuals(feedback):
    return [
        feedback.residual(VIEW, group, segment.offset, segment.count).copy()
        for group, layout in enumerate(VIEW.layouts)
        for segment in layout.segments
    ]


@pytest.mark.parametrize("encoding", ENCODED, ids=lambda encoding: encoding.name)
def test_what_has_arrived_and_what_is_left_is_all_that_was_given(encoding):
    """Over pushes that are applied, refused or sent without some parameters, in any order."""
    places = st.sampled_from([(0, 0), (0, 1), (0, 3), (1, 0)])
    pushes = st.lists(st.tuples(st.booleans(), st.sets(places, max_size=3)), max_size=8)

    @given(pushes)
    @settings(max_examples=25, deadline=None)
    def holds(history):
        feedback = ErrorFeedback(encoding)
        given_sum = [np.zeros(a.size) for a in flat(gradients(0))]
        arrived = [np.zeros(a.size) for a in given_sum]
        for seed, (applied, missing) in enumerate(history):
            rows = gradients(seed, missing)
            source = feedback.begin(VIEW, rows)
            if applied:
                given_sum = [total + more for total, more in zip(given_sum, flat(rows), strict=True)]
                arrived = [total + more for total, more in zip(arrived, received(source), strict=True)]
            feedback.settle(applied=applied)
        for total, there, left in zip(given_sum, arrived, residuals(feedback), strict=True):
            np.testing.assert_allclose(there + left, total, rtol=0, atol=1e-5)

    holds()


def test_every_attempt_sends_the_same_bytes():
    """Also where the arrays have changed in between."""
    feedback = ErrorFeedback(TopK(0.25))
    feedback.begin(VIEW, gradients(1))
    feedback.settle(applied=True)
    rows = gradients(2)
    source = feedback.begin(VIEW, rows)
    first = messages(source)
    rows[0][0][:] = 0
    assert messages(source) == first
    assert feedback.pending


def test_a_refused_push_leaves_all_as_it_was():
    feedback = ErrorFeedback(TopK(0.25))
    feedback.begin(VIEW, gradients(1))
    feedback.settle(applied=True)
    before = residuals(feedback)
    assert any(residual.any() for residual in before)
    rows = gradients(2)
    rows[0][0][0, 0] = np.nan
    assert any(np.isnan(array).any() for array in received(feedback.begin(VIEW, rows)))
    feedback.settle(applied=False)
    rows[0][1][:] = 1e300
    with pytest.raises(EncodingOverflow):
        feedback.begin(VIEW, rows)
    assert not feedback.pending
    for left, was in zip(residuals(feedback), before, strict=True):
        np.testing.assert_array_equal(left, was)


def test_one_push_at_a_time():
    feedback = ErrorFeedback(TopK(0.25))
    feedback.begin(VIEW, gradients(1))
    with pytest.raises(RuntimeError, match="settled"):
        feedback.begin(VIEW, gradients(2))


def test_small_elements_arrive_in_the_end():
    """One element is always the largest; without feedback the others would never be sent."""
    view = FlatView([[ParameterSpec("w", (4,), "float32")]])
    feedback = ErrorFeedback(TopK(0.25))
    total = np.zeros(4, "f4")
    for _ in range(40):
        source = feedback.begin(view, [[np.array([1, 0.5, 0.25, 0.25], "f4")]])
        for batch in source():
            for frame in batch:
                total += frame.decoded()
        feedback.settle(applied=True)
    np.testing.assert_allclose(total, [40, 20, 10, 10], atol=2)
