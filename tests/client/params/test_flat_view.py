"""Arrays to frames to arrays, over every shape of job that hypothesis comes up with."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optd.params.flat_view import BATCH_BYTES, FRAME_OVERHEAD, FlatView
from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.encodings.registry import ENCODINGS
from optd_wire.encodings.topk import TopK
from optd_wire.frames import decode, encode
from optd_wire.v1.training_service_pb2 import PushRequest
from optd_wire.values import ParameterSpec

parameter = st.tuples(
    st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from(["float32", "float64"]), st.booleans()
)
jobs = st.lists(st.lists(parameter, min_size=1, max_size=8), min_size=1, max_size=4)


@settings(deadline=None)
@given(jobs, st.integers(8, 200))
def test_what_is_sent_is_what_the_server_stores_and_what_comes_back(job, batch_bytes):
    specs = [[ParameterSpec(f"p{i}", s, d) for i, (s, d, _) in enumerate(group)] for group in job]
    rng = np.random.default_rng(0)
    given_arrays = [[rng.normal(size=s).astype(d) if there else None for s, d, there in group] for group in job]
    view = FlatView(specs, batch_bytes=batch_bytes + FRAME_OVERHEAD)
    sink = FrameSink(FlatBuffers([extent_of(view.layouts)]), "gradient", [f"g{i}" for i in range(len(job))])
    back = [[np.full(s, np.nan, d) for s, d, _ in group] for group in job]
    # Arrays of the user may have any strides.
    back = [[np.asfortranarray(array) for array in row] for row in back]
    for batch in view.source(given_arrays)():
        _, frames = decode(PushRequest, encode(PushRequest(), batch))
        for frame in frames:
            assert frame.values.nbytes <= batch_bytes
            sink.write_all((frame,))
            view.write((frame,), back)
    for group, row in enumerate(given_arrays):
        for place, array in enumerate(row):
            if array is not None:
                np.testing.assert_array_equal(back[group][place], array)
    (extent,), (presence,) = sink.buffers.extents, sink.ledger.presence()
    for group, (layout, places) in enumerate(zip(view.layouts, extent.places, strict=True)):
        for segment, place in zip(layout.segments, places, strict=True):
            whole = presence[place.slab][place.first : place.first + len(segment.members)]
            for member, there in zip(segment.members, whole, strict=True):
                # An empty parameter without a gradient may lie between two that have one.
                if layout.parameters[member].size:
                    assert bool(there) == (given_arrays[group][member] is not None)
                elif given_arrays[group][member] is not None:
                    assert there


@settings(deadline=None)
@given(jobs, st.integers(24, 200), st.sampled_from([ENCODINGS["bfloat16"], ENCODINGS["int8"], TopK(1)]))
def test_what_is_sent_in_fewer_bytes_comes_back_alike_on_both_sides(job, batch_bytes, encoding):
    specs = [[ParameterSpec(f"p{i}", s, d) for i, (s, d, _) in enumerate(group)] for group in job]
    rng = np.random.default_rng(0)
    sent = [[rng.normal(size=s).astype(d) for s, d, _ in group] for group in job]
    view = FlatView(specs, batch_bytes=batch_bytes + FRAME_OVERHEAD)
    sink = FrameSink(FlatBuffers([extent_of(view.layouts)]), "gradient", [f"g{i}" for i in range(len(job))])
    back = [[np.full(s, np.nan, d) for s, d, _ in group] for group in job]
    for batch in view.source(sent, encoding=encoding)():
        for frame in decode(PushRequest, encode(PushRequest(), batch))[1]:
            sink.write_all((frame,))
            view.write((frame,), back)
    sink.ledger.require_all()
    for layout, flat, row, given_row in zip(view.layouts, sink.buffers.arrays, back, sent, strict=True):
        for segment, stored in zip(layout.segments, flat, strict=True):
            arrays = [row[member].reshape(-1) for member in segment.members]
            assert np.concatenate(arrays).tobytes() == stored.tobytes()
        for array, original in zip(row, given_row, strict=True):
            np.testing.assert_allclose(array, original, atol=0.03)


@settings(deadline=None)
@given(jobs)
def test_ranges_hold_what_is_there_and_each_lies_in_one_dtype(job):
    specs = [[ParameterSpec(f"p{i}", s, d) for i, (s, d, _) in enumerate(group)] for group in job]
    given_arrays = [[np.zeros(s, d) if there else None for s, d, there in group] for group in job]
    view = FlatView(specs)
    found = [[] for _ in job]
    for part in view.ranges(given_arrays):
        segments = view.layouts[part.group].segments
        assert any(s.offset <= part.offset and part.offset + part.count <= s.offset + s.count for s in segments)
        found[part.group] += range(part.offset, part.offset + part.count)
    for layout, row, elements in zip(view.layouts, given_arrays, found, strict=True):
        there = [p for p, array in zip(layout.parameters, row, strict=True) if array is not None]
        assert elements == sorted(e for p in there for e in range(p.offset, p.offset + p.size))


def test_neighbours_of_one_dtype_are_one_range():
    shapes = [((2,), "float32"), ((3,), "float64"), ((4,), "float32"), ((1,), "float32")]
    view = FlatView([[ParameterSpec(f"p{i}", s, d) for i, (s, d) in enumerate(shapes)]])
    arrays = [np.zeros(s, d) for s, d in shapes]

    def ranges(*missing):
        given = [[None if i in missing else array for i, array in enumerate(arrays)]]
        return [(part.offset, part.count) for part in view.ranges(given)]

    assert ranges() == [(0, 7), (7, 3)]
    assert ranges(0) == [(2, 5), (7, 3)]
    assert ranges(2) == [(0, 2), (6, 1), (7, 3)]
    assert ranges(1, 3) == [(0, 6)]


def test_a_large_parameter_takes_many_batches_and_small_ones_share_one():
    large = FlatView([[ParameterSpec("w", (3 * BATCH_BYTES // 4 + 1,), "float32")]])
    assert len(list(large.source([[np.zeros(3 * BATCH_BYTES // 4 + 1, "f4")]])())) == 4
    small = FlatView([[ParameterSpec(f"p{i}", (3,), "float32") for i in range(1000)]])
    batches = list(small.source([[np.zeros(3, "f4")] * 1000])())
    assert [len(batch) for batch in batches] == [1]
